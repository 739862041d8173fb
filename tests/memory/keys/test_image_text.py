from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.keys.image_text import ImageTextKeyFunction

N, D, V, W = 5, 12, 20, 8
GENERATOR = torch.Generator().manual_seed(0)
MEAN = torch.randn(D, generator=GENERATOR)
TABLE = torch.randn(V, W, generator=GENERATOR)
TEXT_MEAN = torch.randn(W, generator=GENERATOR) * 0.1
PROJECTION = torch.randn(D, 6, generator=GENERATOR)


def make(kind: str = "pooled", alpha: float = 0.4, **more) -> ImageTextKeyFunction:
    return ImageTextKeyFunction(kind, alpha, MEAN, TABLE, TEXT_MEAN, **more)  # type: ignore[arg-type]


def features(batch: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, N, D, generator=torch.Generator().manual_seed(seed))


TEXTS = st.lists(st.lists(st.integers(1, V - 1), max_size=6), min_size=1, max_size=5)


def padded(texts: list[list[int]], extra: int = 0) -> torch.Tensor:
    length = max([1, *map(len, texts)]) + extra
    return torch.tensor([text + [0] * (length - len(text)) for text in texts])


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, extra=st.integers(0, 9), garbage=st.integers(1, V - 1))
def test_a_query_does_not_depend_on_padding_or_on_its_batch(kind, texts, extra, garbage) -> None:
    function = make(kind)
    images = features(len(texts))
    together = function.keys(images, padded(texts))
    more = padded(texts, extra)
    torch.testing.assert_close(function.keys(images, more), together, atol=1e-6, rtol=0)
    filled = torch.where(more == 0, garbage, more)  # what stands under the mask is not read
    masked = function.keys(images, filled, more != 0)
    torch.testing.assert_close(masked, together, atol=1e-6, rtol=0)
    for b, text in enumerate(texts):
        alone = function.keys(images[b : b + 1], padded([text]))
        torch.testing.assert_close(alone[0], together[b], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("projection", [None, PROJECTION])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_keys_are_unit_fp32_vectors_of_the_announced_length(kind, projection, alpha) -> None:
    function = make(kind, alpha, image_projection=projection)
    keys = function.keys(features(3).bfloat16(), padded([[1, 2], [3], [4, 5, 6]]))
    assert keys.dtype == torch.float32
    assert keys.shape == (3, function.dim)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("projection", [None, PROJECTION])
def test_the_attention_key_is_the_formula_of_the_paper(projection) -> None:
    """The equations, sample by sample, without masks, padding or batches."""
    function = make("attention", 0.4, image_projection=projection)
    texts = [[1, 2, 3], [], [7], [4, 4, 9, 1, 2]]
    images = features(4)
    keys = function.keys(images, padded(texts, extra=2))
    for image, text, key in zip(images, texts, keys):
        v = image if projection is None else image @ projection
        rows = [0.4 * row / row.norm() for row in v]
        for token in text:
            t = TABLE[token] @ function.text_projection
            rows.append(0.6 * t / t.norm())
        x = torch.stack(rows)
        a = torch.softmax(x @ x.T, dim=1)
        expected = a.mean(dim=0) @ x
        torch.testing.assert_close(key, expected / expected.norm(), atol=1e-6, rtol=1e-5)


def test_the_text_projection_of_the_attention_key_keeps_lengths() -> None:
    projection = make("attention").text_projection
    assert projection is not None
    torch.testing.assert_close(projection @ projection.T, torch.eye(W), atol=1e-5, rtol=0)
    assert torch.equal(projection, make("attention").text_projection)


def test_the_pooled_key_weighs_image_and_text_by_alpha() -> None:
    images, ids = features(2), padded([[1, 2, 3], [4, 5]])
    keys = make(alpha=0.4).keys(images, ids)
    only_image = make(alpha=1.0).keys(images)
    only_text = make(alpha=0.0).keys(None, ids)
    expected = torch.cat([0.4**0.5 * only_image, 0.6**0.5 * only_text], dim=1)
    torch.testing.assert_close(keys, expected)
    similarity = 0.4 * only_image[0] @ only_image[1] + 0.6 * only_text[0] @ only_text[1]
    torch.testing.assert_close(keys[0] @ keys[1], similarity)


def test_an_empty_instruction_leaves_the_image_at_full_length() -> None:
    keys = make().keys(features(1), padded([[]]))
    torch.testing.assert_close(keys[:, :D], make(alpha=1.0).keys(features(1)))
    assert not keys[:, D:].any()
    torch.testing.assert_close(make().keys(features(1)), keys)


@pytest.mark.parametrize("kind", ["pooled", "attention"])
def test_text_alone_is_a_query_too(kind) -> None:
    keys = make(kind).keys(None, padded([[1, 2], []]))
    torch.testing.assert_close(keys.norm(dim=1), torch.tensor([1.0, 0.0]))


def test_an_instruction_that_all_samples_share_does_not_become_noise() -> None:
    ids = padded([[3, 4, 5]] * 6)
    function = ImageTextKeyFunction.fit([features(6)], [ids], text_table=TABLE)
    keys = function.keys(features(6), ids)
    assert not keys[:, D:].any()


def test_fitting_streams_over_batches() -> None:
    images, texts = features(7), [[1, 2], [], [3], [4], [], [5, 6], [7]]
    whole = ImageTextKeyFunction.fit([images], [padded(texts)], text_table=TABLE)
    parts = ImageTextKeyFunction.fit(
        (part for part in images.split(2)),
        (padded(texts[start : start + 2]) for start in range(0, 7, 2)),
        text_table=TABLE,
    )
    torch.testing.assert_close(whole.image_mean, images.mean(dim=(0, 1)))
    torch.testing.assert_close(parts.image_mean, whole.image_mean)
    torch.testing.assert_close(parts.text_mean, whole.text_mean)
    spoken = torch.stack([TABLE[text].mean(dim=0) for text in texts if text])
    torch.testing.assert_close(whole.text_mean, spoken.mean(dim=0))


@pytest.mark.parametrize("kind", ["pooled", "attention"])
def test_saving_and_loading_changes_nothing(kind, tmp_path: Path) -> None:
    function = make(kind, image_projection=PROJECTION)
    function.save(tmp_path)
    again = ImageTextKeyFunction.load(tmp_path)
    assert again.hash == function.hash
    ids = padded([[1, 2]])
    assert torch.equal(again.keys(features(1), ids), function.keys(features(1), ids))


def test_the_hash_sees_settings_and_tensors() -> None:
    hashes = {
        make().hash,
        make("attention").hash,
        make(alpha=0.5).hash,
        make(image_projection=PROJECTION).hash,
        ImageTextKeyFunction("pooled", 0.4, MEAN + 1, TABLE, TEXT_MEAN).hash,
    }
    assert len(hashes) == 5


@pytest.mark.parametrize("name", ["key.json", "key.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_key_function_is_refused_by_name(name, damage, tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / name
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BankError, match=name):
        ImageTextKeyFunction.load(tmp_path)


def test_other_tensors_than_the_saved_ones_are_refused(tmp_path: Path) -> None:
    make().save(tmp_path / "a")
    make(image_projection=PROJECTION).save(tmp_path / "b")
    (tmp_path / "b" / "key.safetensors").replace(tmp_path / "a" / "key.safetensors")
    with pytest.raises(BankError, match=r"key\.safetensors"):
        ImageTextKeyFunction.load(tmp_path / "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "mean"},
        {"alpha": 1.5},
        {"text_table": None},
        {"image_projection": torch.zeros(D + 1, 3)},
        {"text_mean": torch.zeros(W + 1)},
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong) -> None:
    settings = {"kind": "pooled", "alpha": 0.4, "image_mean": MEAN, "text_table": TABLE} | wrong
    with pytest.raises(ConfigError):
        ImageTextKeyFunction(**settings)


def test_features_of_another_encoder_are_refused_with_both_widths() -> None:
    with pytest.raises(ConfigError, match=rf"{D}.*{D + 1}"):
        make().keys(torch.zeros(1, N, D + 1))


def test_text_alone_cannot_be_searched_where_keys_hold_none() -> None:
    with pytest.raises(ConfigError, match="alpha is 1"):
        make(alpha=1.0).keys(None, padded([[1]]))
