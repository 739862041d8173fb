from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyalign.data.images import load_image
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import BankError, ConfigError, DataError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.coding import CodingError
from tinyalign.memory.building import writer
from tinyalign.memory.building.builder import BuildPart, build_bank, dataset_hash
from tinyalign.memory.perceiver import Perceiver


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def answer(sample: Sample, text: str) -> Sample:
    """The sample with another answer."""
    return replace(sample, messages=(*sample.messages[:-1], Message("assistant", text)))


def test_keys_and_values_are_those_of_the_compressor(bank, samples, vision, perceiver) -> None:
    features = vision.encode([load_image(sample.images[0]) for sample in samples])
    keys = perceiver.keys(features, [sample.instruction for sample in samples])
    values = perceiver.values(features, [sample.text for sample in samples])
    stored = torch.from_numpy(bank.keys).float()
    torch.testing.assert_close(stored, keys, atol=5e-4, rtol=0)
    step = values.abs().amax(dim=-1, keepdim=True) / 127  # of an 8-bit code
    assert ((torch.from_numpy(bank.values) - values).abs() <= 0.51 * step).all()


def test_the_same_input_gives_the_same_bytes(samples, vision, perceiver, bank, tmp_path) -> None:
    build_bank(samples, vision, perceiver, tmp_path, batch_size=4, vision_name="tiny")
    assert content(tmp_path) == content(bank.folder)


def test_images_decoded_in_workers_give_the_same_bytes(
    samples, vision, perceiver, bank, tmp_path
) -> None:
    arguments = {"batch_size": 4, "vision_name": "tiny", "workers": 2}
    build_bank(samples, vision, perceiver, tmp_path, **arguments)
    assert content(tmp_path) == content(bank.folder)


def test_a_picture_is_encoded_once_in_a_batch(samples, vision, perceiver, tmp_path) -> None:
    counting = KillerEncoder(vision, 9)
    built = build_bank(samples, counting, perceiver, tmp_path, batch_size=12).bank
    assert counting.encoded == 9  # of twelve samples
    assert (built.keys[9] == built.keys[0]).all()  # same picture, same instruction


def test_answers_reach_values_but_never_keys(samples, vision, perceiver, bank, tmp_path) -> None:
    others = [answer(sample, f"something else {i}") for i, sample in enumerate(samples)]
    other = build_bank(others, vision, perceiver, tmp_path, batch_size=4).bank
    assert (other.keys == bank.keys).all()
    assert (other.values != bank.values).any(axis=(1, 2)).all()


def test_cached_features_give_the_same_bank_as_live_ones(
    samples, vision, perceiver, bank, tmp_path
) -> None:
    cache = vision.encode([load_image(sample.images[0]) for sample in samples])
    cached = build_bank(samples, vision, perceiver, tmp_path, batch_size=4, features=cache).bank
    torch.testing.assert_close(
        torch.from_numpy(cached.keys), torch.from_numpy(bank.keys), atol=1e-3, rtol=0
    )


class Killed(BaseException):
    """What a kill looks like from inside."""


class KillerEncoder:
    """An encoder that is killed on its n-th batch."""

    def __init__(self, encoder, batches: int) -> None:
        self.encoder, self.left, self.hash = encoder, batches, encoder.hash
        self.encoded = 0

    def encode(self, images):
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.encoded += len(images)
        return self.encoder.encode(images)


@pytest.mark.usefixtures("no_checkpoint_luck")
def test_a_killed_build_goes_on_where_it_was(samples, vision, perceiver, bank, tmp_path) -> None:
    arguments = {"batch_size": 4, "vision_name": "tiny"}
    with pytest.raises(Killed):
        build_bank(samples, KillerEncoder(vision, 2), perceiver, tmp_path, **arguments)
    with pytest.raises(BankError, match="unfinished build"):
        MemoryBank.open(tmp_path)
    # Bytes of a part that was never checkpointed lie behind the committed ones.
    for name in writer.PARTS:
        with open(tmp_path / "building" / name, "ab") as file:
            file.write(b"half a record")
    rest = KillerEncoder(vision, 99)
    build_bank(samples, rest, perceiver, tmp_path, **arguments)
    assert rest.encoded == 4
    assert content(tmp_path) == content(bank.folder)


def test_a_finished_build_is_returned_as_it_is(samples, vision, perceiver, bank) -> None:
    before = content(bank.folder)
    again = build_bank(samples, KillerEncoder(vision, 0), perceiver, bank.folder)
    assert again.bank.hash == bank.hash
    assert content(bank.folder) == before


def test_another_bank_in_the_folder_is_never_overwritten(samples, vision, perceiver, bank) -> None:
    with pytest.raises(BankError, match=r"another bank already \(data \w+, this build \w+\)"):
        build_bank(samples[:5], vision, perceiver, bank.folder)
    with pytest.raises(BankError, match="type of values int8, this build float16"):
        build_bank(samples, vision, perceiver, bank.folder, values_dtype="float16")


@pytest.mark.usefixtures("no_checkpoint_luck")
def test_an_unfinished_build_of_other_data_is_refused(samples, vision, perceiver, tmp_path) -> None:
    with pytest.raises(Killed):
        build_bank(samples, KillerEncoder(vision, 1), perceiver, tmp_path, batch_size=4)
    with pytest.raises(BankError, match="unfinished build from other data"):
        build_bank(samples[:5], vision, perceiver, tmp_path, batch_size=4)


@pytest.fixture
def mixed(samples, tmp_path: Path) -> list[Sample]:
    """Two good samples among a missing image, a broken one, no image, and a repeated id."""
    message = samples[0].messages
    return [
        samples[0],
        Sample("missing", (ImageRef(path=str(tmp_path / "gone.jpg")),), message),
        Sample("broken", (ImageRef(data=samples[0].images[0].data[:60]),), message),
        Sample("text only", (), message),
        replace(samples[2], id="s0"),
        samples[3],
    ]


def test_unusable_samples_are_skipped_counted_and_listed(
    mixed, vision, perceiver, tmp_path, caplog
) -> None:
    with caplog.at_level(logging.WARNING, logger="tinyalign"):
        result = build_bank(mixed, vision, perceiver, tmp_path / "bank", batch_size=2)
    assert result.bank.ids == ["s0", "s3"]
    assert [name for name, _ in result.skipped] == ["missing", "broken", "text only", "s0"]
    assert "gone.jpg" in result.skipped[0][1]
    assert "4 of 6" in caplog.text
    assert result.bank.manifest.build["skipped"] == 4


def test_strict_stops_at_the_first_unusable_sample(mixed, vision, perceiver, tmp_path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        build_bank(mixed, vision, perceiver, tmp_path / "bank", strict=True)


def test_features_that_are_not_numbers_cost_one_sample(
    samples, vision, perceiver, tmp_path
) -> None:
    cache = vision.encode([load_image(sample.images[0]) for sample in samples])
    cache = cache.clone()  # out of inference mode
    cache[5, 0, 0] = float("nan")
    result = build_bank(samples, vision, perceiver, tmp_path, features=cache)
    assert [name for name, _ in result.skipped] == ["s5"]
    assert len(result.bank) == 11


@pytest.mark.usefixtures("no_checkpoint_luck")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_build_lists_what_it_skipped_before(
    workers, mixed, vision, perceiver, tmp_path
) -> None:
    arguments = {"batch_size": 2, "workers": workers}
    whole = build_bank(mixed, vision, perceiver, tmp_path / "whole", **arguments)
    with pytest.raises(Killed):
        build_bank(mixed, KillerEncoder(vision, 1), perceiver, tmp_path / "bank", **arguments)
    again = build_bank(mixed, vision, perceiver, tmp_path / "bank", **arguments)
    assert again.skipped == whole.skipped
    assert len(again.skipped) == 4
    assert content(tmp_path / "bank") == content(tmp_path / "whole")


def test_shares_are_whole_batches_and_leave_nothing_out() -> None:
    for total in (0, 1, 7, 64, 1000):
        for count in (1, 2, 3, 8):
            rows = [BuildPart(index, count).rows(total, 8) for index in range(count)]
            assert [row for one in rows for row in one] == list(range(total))
            assert all(one.start % 8 == 0 for one in rows if one)


def test_a_launch_whose_processes_do_not_meet_is_refused(monkeypatch) -> None:
    class Alone:
        process_index, num_processes = 0, 1

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("tinyalign.memory.building.builder._together", Alone)
    with pytest.raises(ConfigError, match="2 processes were launched, 1 found each other"):
        BuildPart.of_launch()
    monkeypatch.delenv("RANK")
    assert BuildPart.of_launch() == BuildPart(0, 1)


def test_the_coding_loss_is_the_same_in_any_order_of_adding() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(50):
        exact = rng.normal(size=(7, 8, 8)).astype(np.float32)
        errors.append(CodingError())
        errors[-1].add(exact, exact + rng.normal(scale=0.01, size=exact.shape))
    halves = sum(errors[:20], CodingError()) + sum(errors[20:], CodingError())
    assert halves == sum(errors, CodingError())
    assert halves.relative == pytest.approx(0.01, rel=0.05)


def test_a_bank_of_nothing_is_refused(mixed, vision, perceiver, tmp_path) -> None:
    with pytest.raises(BankError, match="none of 1 samples"):
        build_bank(mixed[1:2], vision, perceiver, tmp_path / "bank")


def test_the_bank_carries_its_compressor(bank, perceiver) -> None:
    carried = Perceiver.load(bank.perceiver_folder)
    assert carried.hash == perceiver.hash
    assert carried.key_function.hash == perceiver.key_function.hash


def test_the_dataset_hash_sees_order_text_and_image_bytes(samples) -> None:
    first = samples[0]
    versions = [
        samples,
        samples[::-1],
        [answer(first, "else"), *samples[1:]],
        [replace(first, images=samples[1].images), *samples[1:]],
        samples[:-1],
    ]
    assert len({dataset_hash(version) for version in versions}) == 5
    moved = [replace(first, images=(ImageRef(path=f"/{x}/one.jpg"),)) for x in "ab"]
    assert dataset_hash(moved[:1]) == dataset_hash(moved[1:])
