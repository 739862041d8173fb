from __future__ import annotations

import os
import shutil

import pytest
import torch

from tinyalign.data.images import load_image
from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.keys.image_text import ImageTextKeyFunction
from tinyalign.memory.keys.text import train_tokenizer
from tinyalign.memory.perceiver import Perceiver, copy_perceiver, load_perceiver
from tinyalign.model.perceiver import PerceiverNetwork, PerceiverNetworkConfig

from .conftest import make_perceiver


@pytest.fixture(scope="module")
def features(samples, vision) -> torch.Tensor:
    return vision.encode([load_image(sample.images[0]) for sample in samples])


def test_values_do_not_depend_on_padding_or_batch(samples, perceiver, features) -> None:
    texts = [sample.text for sample in samples]
    texts[3] = "short"
    together = perceiver.values(features, texts)
    assert together.shape == (12, *perceiver.value_shape)
    assert together.dtype == torch.float32
    for b in (0, 3, 11):
        alone = perceiver.values(features[b : b + 1], texts[b : b + 1])
        torch.testing.assert_close(alone[0], together[b], atol=1e-4, rtol=0)


def test_long_and_empty_texts_have_values_too(perceiver, features) -> None:
    values = perceiver.values(features[:2], ["word " * 500, ""])
    assert values.isfinite().all()


def test_queries_see_the_instruction_as_the_key_function_would(samples, perceiver, features):
    instructions = [sample.instruction for sample in samples]
    ids = perceiver.query_ids(instructions)
    assert torch.equal(
        perceiver.keys(features, instructions), perceiver.key_function.keys(features, ids)
    )


def test_saving_and_loading_changes_nothing(perceiver, features, tmp_path) -> None:
    perceiver.save(tmp_path)
    again = Perceiver.load(tmp_path)
    assert again.hash == perceiver.hash
    assert again.key_function.hash == perceiver.key_function.hash
    texts = ["some text"] * 12
    assert torch.equal(again.values(features, texts), perceiver.values(features, texts))
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "key.json",
        "key.safetensors",
    } == {path.name for path in tmp_path.iterdir()}


def test_the_hash_sees_weights_settings_and_tokenizer(perceiver, tmp_path) -> None:
    def changed(change) -> str:
        perceiver.save(tmp_path)
        other = Perceiver.load(tmp_path)
        change(other)
        return other.hash

    def weight(c):
        next(c.network.parameters()).data.add_(1.0)

    def heads(c):
        c.network.config.num_self_attention_heads = 4

    def tokenizer(c):
        c.tokenizer = train_tokenizer(["other words"], 290)

    hashes = {changed(change) for change in (weight, heads, tokenizer, lambda c: None)}
    assert len(hashes) == 4
    assert perceiver.hash in hashes


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "key.json", "key.safetensors"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_compressor_is_refused(name, damage, perceiver, tmp_path) -> None:
    perceiver.save(tmp_path)
    path = tmp_path / name
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:30])
    about = name if damage == "missing" or "token" in name or "key" in name else "Perceiver"
    with pytest.raises(BankError, match=about):
        Perceiver.load(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(perceiver) -> None:
    tokenizer = train_tokenizer([f"word number {i}" for i in range(500)], 320)
    with pytest.raises(ConfigError, match="300"):
        Perceiver(perceiver.network, tokenizer, perceiver.key_function)


def test_a_perceiver_that_reads_pixels_gets_the_images(samples, perceiver, features) -> None:
    small = {"d_model": 16, "num_self_attends_per_block": 1, "qk_channels": 8, "v_channels": 8}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    latents = {"num_latents": 8, "d_latents": 8, "n_text_latents": 6}
    config = PerceiverNetworkConfig(
        input_mode="pixels",
        image_size=32,
        patch_size=8,
        vocab_size=300,
        **small,
        **heads,
        **latents,
    )
    pixels = Perceiver(PerceiverNetwork(config), perceiver.tokenizer, perceiver.key_function)
    images = [load_image(sample.images[0]) for sample in samples[:2]]
    assert pixels.pixels(images).shape == (2, 3, 32, 32)
    assert pixels.pixels(images).abs().max() <= 1
    values = pixels.values(None, ["same", "same"], images)
    assert (values[0] - values[1]).abs().max() > 1e-4
    with pytest.raises(ConfigError, match="images"):
        pixels.values(features[:2], ["a", "b"])
    with pytest.raises(ConfigError, match="features"):
        perceiver.values(None, ["a", "b"], images)


def test_whoever_may_read_new_files_may_read_all_of_a_compressor(perceiver, tmp_path) -> None:
    before = os.umask(0o027)
    try:
        perceiver.save(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "key.safetensors"])
def test_a_file_that_cannot_be_read_is_not_called_missing(
    name, perceiver, locked, tmp_path
) -> None:
    perceiver.save(tmp_path)
    locked(tmp_path / name)
    with pytest.raises(BankError, match=rf"{name}: cannot be read \(Permission denied\)"):
        Perceiver.load(tmp_path)


# -- a bank's own -------------------------------------------------------------------------------


def test_a_banks_compressor_is_the_one_that_made_it(bank, perceiver) -> None:
    found = load_perceiver(bank)
    assert found.hash == perceiver.hash == bank.manifest.perceiver_hash
    assert found.key_function.hash == bank.manifest.key_hash


@pytest.mark.parametrize("other", ["Perceiver", "key function"])
def test_another_compressor_in_a_banks_folder_is_refused(other, bank, perceiver, tmp_path) -> None:
    copy = MemoryBank.open(shutil.copytree(bank.folder, tmp_path / "copy"))
    network, keys = make_perceiver(seed=1), perceiver.key_function
    if other == "key function":
        network = perceiver.network
        keys = ImageTextKeyFunction("pooled", 0.5, keys.image_mean, keys.text_table, keys.text_mean)
    Perceiver(network, perceiver.tokenizer, keys).save(copy.perceiver_folder)
    message = {"Perceiver": "it was replaced", "key function": "another key function"}[other]
    with pytest.raises(BankError, match=message):
        load_perceiver(copy)


def test_a_compressor_is_copied_only_from_and_to_its_folder(tmp_path) -> None:
    (tmp_path / "secret").write_text("mine")
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(BankError, match="expected one inside the folder"):
            copy_perceiver([name], tmp_path / "from", tmp_path / "to")
