from __future__ import annotations

import os
import shutil

import pytest
import torch

from tinyalign.data.images import load_image
from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.keys.image_text import KeyFunction
from tinyalign.memory.keys.text import train_tokenizer
from tinyalign.memory.perceiver import Compressor, copy_compressor, load_compressor
from tinyalign.model.perceiver import PerceiverCompressor, PerceiverCompressorConfig

from .conftest import make_perceiver


@pytest.fixture(scope="module")
def features(samples, vision) -> torch.Tensor:
    return vision.encode([load_image(sample.images[0]) for sample in samples])


def test_values_do_not_depend_on_padding_or_batch(samples, compressor, features) -> None:
    texts = [sample.text for sample in samples]
    texts[3] = "short"
    together = compressor.values(features, texts)
    assert together.shape == (12, *compressor.value_shape)
    assert together.dtype == torch.float32
    for b in (0, 3, 11):
        alone = compressor.values(features[b : b + 1], texts[b : b + 1])
        torch.testing.assert_close(alone[0], together[b], atol=1e-4, rtol=0)


def test_long_and_empty_texts_have_values_too(compressor, features) -> None:
    values = compressor.values(features[:2], ["word " * 500, ""])
    assert values.isfinite().all()


def test_queries_see_the_instruction_as_the_key_function_would(samples, compressor, features):
    instructions = [sample.instruction for sample in samples]
    ids = compressor.query_ids(instructions)
    assert torch.equal(
        compressor.keys(features, instructions), compressor.key_function.keys(features, ids)
    )


def test_saving_and_loading_changes_nothing(compressor, features, tmp_path) -> None:
    compressor.save(tmp_path)
    again = Compressor.load(tmp_path)
    assert again.hash == compressor.hash
    assert again.key_function.hash == compressor.key_function.hash
    texts = ["some text"] * 12
    assert torch.equal(again.values(features, texts), compressor.values(features, texts))
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "key.json",
        "key.safetensors",
    } == {path.name for path in tmp_path.iterdir()}


def test_the_hash_sees_weights_settings_and_tokenizer(compressor, tmp_path) -> None:
    def changed(change) -> str:
        compressor.save(tmp_path)
        other = Compressor.load(tmp_path)
        change(other)
        return other.hash

    def weight(c):
        next(c.perceiver.parameters()).data.add_(1.0)

    def heads(c):
        c.perceiver.config.num_self_attention_heads = 4

    def tokenizer(c):
        c.tokenizer = train_tokenizer(["other words"], 290)

    hashes = {changed(change) for change in (weight, heads, tokenizer, lambda c: None)}
    assert len(hashes) == 4
    assert compressor.hash in hashes


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "key.json", "key.safetensors"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_compressor_is_refused(name, damage, compressor, tmp_path) -> None:
    compressor.save(tmp_path)
    path = tmp_path / name
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:30])
    about = name if damage == "missing" or "token" in name or "key" in name else "Perceiver"
    with pytest.raises(BankError, match=about):
        Compressor.load(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(compressor) -> None:
    tokenizer = train_tokenizer([f"word number {i}" for i in range(500)], 320)
    with pytest.raises(ConfigError, match="300"):
        Compressor(compressor.perceiver, tokenizer, compressor.key_function)


def test_a_perceiver_that_reads_pixels_gets_the_images(samples, compressor, features) -> None:
    small = {"d_model": 16, "num_self_attends_per_block": 1, "qk_channels": 8, "v_channels": 8}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    latents = {"num_latents": 8, "d_latents": 8, "n_text_latents": 6}
    config = PerceiverCompressorConfig(
        input_mode="pixels",
        image_size=32,
        patch_size=8,
        vocab_size=300,
        **small,
        **heads,
        **latents,
    )
    pixels = Compressor(PerceiverCompressor(config), compressor.tokenizer, compressor.key_function)
    images = [load_image(sample.images[0]) for sample in samples[:2]]
    assert pixels.pixels(images).shape == (2, 3, 32, 32)
    assert pixels.pixels(images).abs().max() <= 1
    values = pixels.values(None, ["same", "same"], images)
    assert (values[0] - values[1]).abs().max() > 1e-4
    with pytest.raises(ConfigError, match="images"):
        pixels.values(features[:2], ["a", "b"])
    with pytest.raises(ConfigError, match="features"):
        compressor.values(None, ["a", "b"], images)


def test_whoever_may_read_new_files_may_read_all_of_a_compressor(compressor, tmp_path) -> None:
    before = os.umask(0o027)
    try:
        compressor.save(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "key.safetensors"])
def test_a_file_that_cannot_be_read_is_not_called_missing(
    name, compressor, locked, tmp_path
) -> None:
    compressor.save(tmp_path)
    locked(tmp_path / name)
    with pytest.raises(BankError, match=rf"{name}: cannot be read \(Permission denied\)"):
        Compressor.load(tmp_path)


# -- a bank's own -------------------------------------------------------------------------------


def test_a_banks_compressor_is_the_one_that_made_it(bank, compressor) -> None:
    found = load_compressor(bank)
    assert found.hash == compressor.hash == bank.manifest.compressor_hash
    assert found.key_function.hash == bank.manifest.key_hash


@pytest.mark.parametrize("other", ["Perceiver", "key function"])
def test_another_compressor_in_a_banks_folder_is_refused(other, bank, compressor, tmp_path) -> None:
    copy = MemoryBank.open(shutil.copytree(bank.folder, tmp_path / "copy"))
    perceiver, keys = make_perceiver(seed=1), compressor.key_function
    if other == "key function":
        perceiver = compressor.perceiver
        keys = KeyFunction("pooled", 0.5, keys.image_mean, keys.text_table, keys.text_mean)
    Compressor(perceiver, compressor.tokenizer, keys).save(copy.compressor_folder)
    message = {"Perceiver": "it was replaced", "key function": "another key function"}[other]
    with pytest.raises(BankError, match=message):
        load_compressor(copy)


def test_a_compressor_is_copied_only_from_and_to_its_folder(tmp_path) -> None:
    (tmp_path / "secret").write_text("mine")
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(BankError, match="expected one inside the folder"):
            copy_compressor([name], tmp_path / "from", tmp_path / "to")
