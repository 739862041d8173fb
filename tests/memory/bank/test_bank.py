from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyalign.errors import BankError
from tinyalign.hashing import hash_json
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.changes import remove_entries
from tinyalign.memory.building.editor import compact


@pytest.fixture
def copy(bank: MemoryBank, tmp_path: Path) -> Path:
    """A bank that a test may damage."""
    return Path(shutil.copytree(bank.folder, tmp_path / "copy"))


def test_a_bank_holds_what_the_samples_said(bank, samples, perceiver) -> None:
    assert len(bank) == 12
    assert bank.ids == [sample.id for sample in samples]
    assert bank.texts == [sample.text for sample in samples]
    assert bank.sources == ["made"] * 12
    assert bank.entry(3).instruction == samples[3].instruction
    assert bank.image_hashes[0] == bank.image_hashes[9] != bank.image_hashes[1]
    assert bank.keys.shape == (12, perceiver.key_function.dim)
    assert bank.values.shape == (12, 8, 8)
    assert bank.values.dtype == np.float32
    assert bank.keys.dtype == np.float16
    with pytest.raises(IndexError):
        bank.entry(12)


def test_the_manifest_names_every_part_it_was_made_with(bank, vision, perceiver) -> None:
    info = bank.info()
    assert info["vision_hash"] == vision.hash
    assert info["perceiver_hash"] == perceiver.hash
    assert info["key_hash"] == perceiver.key_function.hash
    assert info["alpha"] == 0.6
    assert info["count"] == 12
    assert (
        info["bytes"]
        == sum(p.stat().st_size for p in bank.folder.rglob("*") if p.is_file())
        - (bank.folder / "manifest.json").stat().st_size
    )
    assert not list(bank.folder.rglob("*.pkl"))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(-1, 11), min_size=1, max_size=12))
def test_gather_takes_rows_and_gives_zeros_for_absent_ones(bank, rows) -> None:
    values = bank.gather(torch.tensor([rows]))
    assert values.shape == (1, len(rows), 8, 8)
    assert values.dtype == torch.float32
    for row, value in zip(rows, values[0]):
        expected = bank.values[row] if row >= 0 else np.zeros((8, 8))
        assert (value.numpy() == expected).all()


def test_gathered_values_are_copies(bank) -> None:
    before = bank.gather(torch.tensor([0]))
    bank.gather(torch.tensor([0])).zero_()
    assert torch.equal(bank.gather(torch.tensor([0])), before)


def test_rows_beyond_the_bank_are_refused(bank) -> None:
    with pytest.raises(BankError, match="12"):
        bank.gather(torch.tensor([[12]]))


def test_rows_of_finds_ids_and_all_entries_of_an_image(bank) -> None:
    assert bank.rows_of(["s3", "nobody"]) == [3]
    assert bank.rows_of(image_hashes=[bank.image_hashes[1]]) == [1, 10]
    assert bank.rows_of(["s3", "s1"], [bank.image_hashes[1]]) == [1, 3, 10]
    assert bank.rows_of([f"s{i}" for i in range(2000)]) == list(range(12))


def test_a_pickled_bank_maps_the_same_files(bank) -> None:
    data = pickle.dumps(bank)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.hash == bank.hash
    assert (again.keys == bank.keys).all()


def test_a_whole_bank_verifies(bank) -> None:
    bank.verify()


FILES = ["keys-1.f16", "values-1.i8", "entries-1-1.sqlite"]


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_opening_a_damaged_bank_names_the_file(name: str, damage: str, copy: Path) -> None:
    path = copy / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BankError, match=name):
        MemoryBank.open(copy)


@pytest.mark.parametrize("name", FILES[:2])
def test_what_a_writer_has_not_committed_yet_is_not_seen(name: str, bank, copy: Path) -> None:
    with open(copy / name, "ab") as file:
        file.write(b"half a record")
    found = MemoryBank.open(copy)
    found.verify()
    assert found.hash == bank.hash
    assert (found.values == bank.values).all()


@pytest.mark.parametrize(
    "name",
    [
        *FILES,
        "compressor/model.safetensors",
        "compressor/key.safetensors",
        "compressor/tokenizer.json",
    ],
)
def test_verify_finds_a_flipped_bit_and_names_the_file(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BankError, match=name):
        MemoryBank.open(copy).verify()


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"alpha": 0.6', '"alpha": 0.7'))
    with pytest.raises(BankError, match=r"manifest\.json.*edited or damaged"):
        MemoryBank.open(copy)


def test_a_newer_format_is_refused_with_what_to_do(copy: Path) -> None:
    path = copy / "manifest.json"
    content = json.loads(path.read_text()) | {"format_version": 99, "something": "new"}
    path.write_text(json.dumps(content))
    with pytest.raises(BankError, match=r"manifest\.json.*format 99.*upgrade"):
        MemoryBank.open(copy)


@pytest.mark.parametrize("content", [{}, [], {"format_version": 1}, {"format_version": "1"}])
def test_a_manifest_of_something_else_is_refused(content, copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BankError, match=r"manifest\.json"):
        MemoryBank.open(copy)


def rewritten(copy: Path, **changes) -> None:
    """The manifest with other facts, and a hash that fits them."""
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("hash")
    content |= changes
    path.write_text(json.dumps(content | {"hash": hash_json(content)}))


def test_dimensions_that_do_not_fit_the_files_are_refused(copy: Path) -> None:
    rewritten(copy, key_dim=4096)
    with pytest.raises(BankError, match=r"keys-1\.f16: expected \d+ bytes"):
        MemoryBank.open(copy)


def test_rows_that_no_key_belongs_to_are_named(bank, copy: Path) -> None:
    segment = asdict(bank.manifest.segments[0]) | {"stop": 10}
    rewritten(copy, segments=[segment])
    with pytest.raises(BankError, match=r"entries-1-1\.sqlite: 2 orphan rows \(first 10\)"):
        MemoryBank.open(copy).verify()


def test_a_removal_that_the_manifest_does_not_count_is_named(copy: Path) -> None:
    rewritten(copy, removed=3)
    with pytest.raises(BankError, match=r"0 removed rows.*manifest says 3"):
        MemoryBank.open(copy).verify()


def test_a_damaged_entry_file_is_named_when_it_is_read(copy: Path) -> None:
    path = copy / "entries-1-1.sqlite"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(BankError, match=r"entries-1-1\.sqlite"):
        _ = MemoryBank.open(copy).ids


def test_all_damage_is_named_at_once(copy: Path) -> None:
    for name in FILES:
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    problems = list(MemoryBank.open(copy).problems())
    assert len(problems) == 3
    assert all(any(name in problem for problem in problems) for name in FILES)


def test_every_file_that_is_missing_or_too_short_is_named(copy: Path) -> None:
    os.truncate(copy / "keys-1.f16", 3)
    os.truncate(copy / "values-1.i8", 3)
    (copy / "compressor" / "tokenizer.json").unlink()
    with pytest.raises(BankError) as refused:
        MemoryBank.open(copy)
    said = str(refused.value).splitlines()
    names = ("keys-1.f16: expected", "values-1.i8: expected", "tokenizer.json: missing")
    assert [any(name in line for line in said) for name in names] == [True] * 3
    assert len(said) == 3


def test_a_bank_without_entries_has_lost_nothing_by_its_coding(copy: Path) -> None:
    bank = MemoryBank.open(copy)
    assert bank.info()["values_relative_error"] > 0
    emptied = remove_entries(copy, ids=bank.ids).bank
    assert emptied.info()["values_relative_error"] == 0
    assert compact(copy).info()["values_relative_error"] == 0


def test_a_missing_folder_is_a_bank_error(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="not found"):
        MemoryBank.open(tmp_path / "nowhere")
