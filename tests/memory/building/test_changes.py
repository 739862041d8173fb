"""Banks that change: adding, updating, removing and merging, each whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyalign.data.sample import ImageRef, Message
from tinyalign.errors import BankError, ConfigError, DataError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.builder import build_bank
from tinyalign.memory.building.changes import add_samples, find_rows, merge_banks, remove_entries
from tinyalign.memory.building.writer import BankWriter
from tinyalign.memory.perceiver import Perceiver

from ..conftest import make_perceiver, make_sample


@pytest.fixture
def copy(bank: MemoryBank, tmp_path: Path) -> Path:
    """The bank of twelve, to be changed."""
    shutil.copytree(bank.folder, tmp_path / "bank")
    return tmp_path / "bank"


def live(bank: MemoryBank) -> dict[str, str]:
    """Text by id of what is in the bank."""
    return {bank.ids[row]: bank.texts[row] for row in bank.live}


def saying(number: int, text: str):
    """Sample `number` with another answer."""
    sample = make_sample(number)
    return replace(sample, messages=(sample.messages[0], Message("assistant", text)))


def broken(number: int):
    """Sample `number`, its image cut off."""
    sample = make_sample(number)
    return replace(sample, images=(ImageRef(data=(sample.images[0].data or b"")[:60]),))


# ------------------------------------------------------------------------------ adding, updating


def test_a_bank_that_grew_is_the_bank_that_was_built_whole(
    samples, vision, perceiver, tmp_path: Path
) -> None:
    whole = build_bank(samples, vision, perceiver, tmp_path / "whole", batch_size=4).bank
    part = build_bank(samples[:8], vision, perceiver, tmp_path / "part", batch_size=4).bank
    grown = add_samples(part.folder, samples[8:], vision, batch_size=4)
    assert (grown.added, grown.removed, grown.skipped) == (4, 0, ())
    assert (grown.bank.keys == whole.keys).all()
    assert (grown.bank.records == whole.records).all()
    assert [grown.bank.entry(row) for row in range(12)] == [whole.entry(row) for row in range(12)]
    grown.bank.verify()


def test_workers_change_nothing(copy: Path, samples, vision, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path / "other")
    more = [make_sample(i) for i in range(20, 27)]
    one = add_samples(copy, more, vision, batch_size=3).bank
    two = add_samples(tmp_path / "other", more, vision, batch_size=3, workers=2).bank
    assert one.hash == two.hash


def test_ids_that_are_there_are_left_out_and_named(copy: Path, vision) -> None:
    change = add_samples(copy, [make_sample(3), make_sample(30)], vision)
    assert (change.added, [name for name, _ in change.skipped]) == (1, ["s3"])
    assert "in the bank already" in change.skipped[0][1]
    with pytest.raises(BankError, match="none of 1 samples could be added"):
        add_samples(copy, [make_sample(3)], vision)


def test_an_update_replaces_in_one_commit(copy: Path, vision) -> None:
    reader = MemoryBank.open(copy)
    before = reader.manifest.commit
    change = add_samples(copy, [saying(3, "a new answer"), make_sample(40)], vision, update=True)
    assert (change.added, change.removed) == (2, 1)
    assert change.bank.manifest.commit == before + 1
    assert live(change.bank)["s3"].endswith("a new answer")
    assert len(change.bank) == 13
    reader.refresh()
    assert live(reader) == live(change.bank)
    reader.verify()


def test_an_update_that_fails_keeps_the_old_entry(copy: Path, vision) -> None:
    change = add_samples(copy, [broken(3), saying(4, "new")], vision, update=True)
    assert (change.added, change.removed, change.skipped[0][0]) == (1, 1, "s3")
    assert live(change.bank)["s3"] == make_sample(3).text
    with pytest.raises(DataError, match="bytes in memory"):
        add_samples(copy, [saying(6, "newer"), broken(5)], vision, update=True, strict=True)
    assert live(MemoryBank.open(copy)) == live(change.bank)


def test_another_encoder_is_refused(copy: Path, samples, vision, monkeypatch) -> None:
    monkeypatch.setattr(type(vision), "hash", "another")
    with pytest.raises(BankError, match="vision encoders differ"):
        add_samples(copy, samples, vision)


# --------------------------------------------------------------------------------------- removing


def test_a_perceiver_that_was_replaced_adds_nothing(copy: Path, vision) -> None:
    folder = MemoryBank.open(copy).perceiver_folder
    own = Perceiver.load(folder)
    Perceiver(make_perceiver(seed=1), own.tokenizer, own.key_function).save(folder)
    before = MemoryBank.open(copy).hash
    with pytest.raises(BankError, match=r"did not make the bank's values.*it was replaced"):
        add_samples(copy, [make_sample(20)], vision)
    assert MemoryBank.open(copy).hash == before


def test_entries_go_by_id_source_and_row(copy: Path, vision) -> None:
    extra = [replace(make_sample(i), source="extra") for i in (20, 21)]
    add_samples(copy, extra, vision)
    reader = MemoryBank.open(copy)
    assert remove_entries(copy, ids=["s1", "s20"]).removed == 2
    assert set(reader.removed) == {1, 12}  # at once, without a refresh
    assert remove_entries(copy, sources=["extra"]).removed == 1
    assert remove_entries(copy, rows=[0, 1]).removed == 1
    assert len(reader) == 10


def test_what_is_not_there_is_named_and_nothing_goes(copy: Path) -> None:
    for asked, message in (
        ({"ids": ["s1", "nobody"]}, "no entry with the id nobody"),
        ({"ids": ["s1"], "sources": ["elsewhere"]}, "its sources are made"),
        ({"rows": [1, 99]}, "no row 99"),
    ):
        with pytest.raises(BankError, match=message):
            remove_entries(copy, **asked)
    assert len(MemoryBank.open(copy)) == 12
    bank = remove_entries(copy, sources=["made"]).bank
    assert len(bank) == 0
    with pytest.raises(BankError, match="its sources are none"):
        find_rows(bank, sources=["made"])


def test_sources_are_counted_without_what_was_removed(copy: Path, vision) -> None:
    add_samples(copy, [replace(make_sample(20), source="extra")], vision)
    bank = remove_entries(copy, ids=["s4", "s5"]).bank
    assert bank.info()["sources"] == {"extra": 1, "made": 10}


# ---------------------------------------------------------------------------------------- merging


@pytest.fixture
def halves(samples, vision, perceiver, tmp_path: Path) -> list[Path]:
    """Banks of the samples 0-6 and 5-11."""
    folders = [tmp_path / "low", tmp_path / "high"]
    for folder, part in zip(folders, (samples[:7], samples[5:])):
        build_bank(part, vision, perceiver, folder, batch_size=12)
    return folders


def test_merged_banks_keep_every_bit(halves, bank, tmp_path: Path) -> None:
    remove_entries(halves[1], ids=["s5", "s6", "s11"])
    merged = merge_banks(halves, tmp_path / "out").bank
    assert merged.ids == [f"s{i}" for i in range(11)]
    high = MemoryBank.open(halves[1])
    np.testing.assert_array_equal(merged.records[7:], high.records[high.live])
    np.testing.assert_array_equal(merged.keys[7:], high.keys[high.live])
    merged.verify()


def test_an_id_in_two_banks_stops_a_merge_or_the_first_one_stays(halves, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="id 's5' is in an earlier bank too"):
        merge_banks(halves, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    change = merge_banks(halves, tmp_path / "out", keep="first")
    assert [name for name, _ in change.skipped] == ["s5", "s6"]
    assert len(change.bank) == 12
    with pytest.raises(BankError, match="holds a bank already"):
        merge_banks(halves, tmp_path / "out", keep="first")
    with pytest.raises(ConfigError, match="expected error or first"):
        merge_banks(halves, tmp_path / "new", keep="last")


def test_banks_of_other_models_or_codings_do_not_merge(
    halves, samples, vision, perceiver, tmp_path: Path
) -> None:
    other = tmp_path / "f16"
    build_bank(samples[:3], vision, perceiver, other, values_dtype="float16")
    with pytest.raises(BankError, match="types of values differ: float16 here, int8"):
        merge_banks([halves[0], other], tmp_path / "out")


def test_damaged_banks_are_not_merged(halves, tmp_path: Path) -> None:
    """What is copied gets new hashes: they would call the damage whole."""
    remove_entries(halves[1], ids=["s5", "s6"])
    for name in ("values-1.i8", "keys-1.f16", "compressor/model.safetensors"):
        path = halves[1] / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(BankError, match=f"{name}: .*changed since"):
            merge_banks(halves, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        path.write_bytes(whole)
    merged = merge_banks(halves, tmp_path / "out").bank
    for name, facts in merged.manifest.perceiver_files.items():
        assert facts == MemoryBank.open(halves[0]).manifest.perceiver_files[name]


def test_a_merge_counts_no_coding_loss_of_a_bank_that_was_emptied(halves, tmp_path) -> None:
    low, high = map(MemoryBank.open, halves)
    remove_entries(halves[1], ids=high.ids)
    merged = merge_banks(halves, tmp_path / "out").bank
    assert merged.manifest.coding_error == low.manifest.coding_error


def test_a_failed_merge_spares_an_unfinished_build(halves, tmp_path: Path) -> None:
    manifest = MemoryBank.open(halves[0]).manifest
    codings = (manifest.key_coding, manifest.value_coding)
    unfinished = BankWriter(tmp_path / "out", "of something else", *codings)
    unfinished.checkpoint(0)
    unfinished.close()
    progress = unfinished.building / "progress.json"
    with pytest.raises(BankError, match="unfinished build"):
        merge_banks(halves[:1], tmp_path / "out")
    assert progress.exists()
