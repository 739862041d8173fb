"""Verification names every file that is damaged, and why it could not look at one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.verification import damage
from tinyalign.memory.building.changes import remove_entries


@pytest.fixture
def copy(bank: MemoryBank, tmp_path: Path) -> Path:
    """The bank, to change or damage."""
    return Path(shutil.copytree(bank.folder, tmp_path / "copy"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_whole_bank_has_none(copy: Path) -> None:
    assert damage(copy) == []
    remove_entries(copy, ids=["s3"])
    assert damage(copy) == []


def test_what_opening_refuses_hides_no_other_damage(copy: Path) -> None:
    """Sizes that are wrong, and content that changed, each file once."""
    os.truncate(copy / "keys-1.f16", 3)
    os.truncate(copy / "compressor" / "tokenizer.json", 3)
    flip(copy / "values-1.i8")
    flip(copy / "compressor" / "model.safetensors")
    found = damage(copy)
    assert len(found) == 4
    for name, problem in (
        ("keys-1.f16", "bytes, found 3; it was truncated"),
        ("tokenizer.json", "found 3; it was truncated"),
        ("values-1.i8", "rows 0 to 11 changed since they were committed"),
        ("model.safetensors", "its content changed"),
    ):
        assert any(name in line and problem in line for line in found), name


@pytest.mark.parametrize(
    "name", ["keys-1.f16", "values-1.i8", "entries-1-1.sqlite", "compressor/key.safetensors"]
)
def test_a_file_that_cannot_be_read_is_damage_too(name: str, copy: Path, locked) -> None:
    locked(copy / name)
    flip(copy / "compressor" / "key.json")
    found = damage(copy)
    assert len(found) == 2
    assert any(f"{copy / name}: cannot be read (Permission denied)" in line for line in found)


def test_a_folder_without_a_manifest_is_no_bank(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"manifest\.json: not found"):
        damage(tmp_path)
