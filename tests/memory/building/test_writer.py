from __future__ import annotations

import os
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.bank.manifest import Manifest
from tinyalign.memory.building.writer import BankWriter, check_vacant, finish_commit

GENERATOR = torch.Generator().manual_seed(0)
KEYS = torch.randn(10, 6, generator=GENERATOR)
VALUES = torch.randn(10, 4, 3, generator=GENERATOR)
ENTRIES = [Entry(f"é{i}", f"text {i}\nline", "", f"hash{i % 3}", "made", "") for i in range(10)]
MANIFEST = Manifest("tiny", "v", "c", "k", "pooled", 0.4, 6, 4, 3, "d", "float32", "float16")
CODINGS = (MANIFEST.key_coding, MANIFEST.value_coding)


class Killed(BaseException):
    """What a kill looks like from inside."""


def build(folder: Path, fingerprint: str = "one") -> None:
    """Write ten entries in parts of three, as the builder does."""
    if finish_commit(folder):
        return
    writer = BankWriter(folder, fingerprint, *CODINGS)
    try:
        for start in range(writer.progress.position, 10, 3):
            part = slice(start, start + 3)
            writer.append(KEYS[part], VALUES[part], ENTRIES[part])
            writer.checkpoint(min(start + 3, 10))
        (writer.building / "compressor").mkdir(exist_ok=True)
        (writer.building / "compressor" / "key.json").write_text("{}")
        writer.commit(MANIFEST)
    finally:
        writer.close()


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_bank_can_be_read_back(tmp_path: Path) -> None:
    build(tmp_path)
    bank = MemoryBank.open(tmp_path)
    bank.verify()
    assert torch.equal(torch.from_numpy(bank.keys), KEYS)
    assert torch.equal(torch.from_numpy(bank.values), VALUES.half().float())
    assert [bank.entry(row) for row in range(10)] == ENTRIES
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "compressor",
        "entries-1-1.sqlite",
        "keys-1.f32",
        "manifest.json",
        "values-1.f16",
    ]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_before_any_write_is_made_good_by_the_next_build(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before the n-th sync or rename, for every n: no bank or a whole one; then finish."""
    build(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    real = getattr(os, call)
    for step in count():
        left = step

        def mortal(*arguments):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments)

        folder = tmp_path / str(step)
        monkeypatch.setattr(os, call, mortal)
        try:
            build(folder)
            killed = False
        except Killed:
            killed = True
        monkeypatch.setattr(os, call, real)
        if (folder / "manifest.json").exists():
            MemoryBank.open(folder).verify()
        build(folder)
        assert content(folder) == whole, f"killed before {call} number {step}"
        if not killed:
            break
    assert step > 6


def test_what_was_not_checkpointed_is_written_again(tmp_path: Path) -> None:
    build(tmp_path / "whole")
    writer = BankWriter(tmp_path / "part", "one", *CODINGS)
    writer.append(KEYS[:3], VALUES[:3], ENTRIES[:3])
    writer.checkpoint(3)
    writer.append(KEYS[5:9], VALUES[5:9], ENTRIES[5:9])
    writer.skip("lost", "with the part it was in")
    writer.close()
    again = BankWriter(tmp_path / "part", "one", *CODINGS)
    assert again.progress.position == 3
    assert again.ids == {"é0", "é1", "é2"}
    assert again.progress.skipped == []
    again.close()
    build(tmp_path / "part")
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    BankWriter(tmp_path, "one", *CODINGS).checkpoint(0)
    with pytest.raises(BankError, match=r"progress\.json.*unfinished build"):
        BankWriter(tmp_path, "two", *CODINGS)


def test_a_committed_bank_is_never_written_over(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(BankError, match="holds a bank already"):
        BankWriter(tmp_path, "one", *CODINGS)


@pytest.mark.parametrize("name", ["progress.json", "keys"])
def test_a_damaged_unfinished_build_is_refused_by_name(name: str, tmp_path: Path) -> None:
    writer = BankWriter(tmp_path, "one", *CODINGS)
    writer.append(KEYS, VALUES, ENTRIES)
    writer.checkpoint(10)
    writer.close()
    path = tmp_path / "building" / name
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(BankError, match=name):
        BankWriter(tmp_path, "one", *CODINGS)


def test_a_folder_of_something_else_is_no_place_for_a_bank(tmp_path: Path) -> None:
    check_vacant(tmp_path / "new")
    (tmp_path / "writer.lock").touch()
    check_vacant(tmp_path)
    (tmp_path / "letters.txt").touch()
    with pytest.raises(BankError, match=r"found other files \(letters\.txt\); choose another"):
        check_vacant(tmp_path)
    (tmp_path / "building").mkdir()
    check_vacant(tmp_path)  # a build was begun here: that one is gone on with
    (tmp_path / "building").rmdir()
    (tmp_path / "letters.txt").unlink()
    build(tmp_path)
    check_vacant(tmp_path)  # what to do about a bank, those who build one say


def test_ids_must_be_unique(tmp_path: Path) -> None:
    writer = BankWriter(tmp_path, "one", *CODINGS)
    writer.append(KEYS[:1], VALUES[:1], ENTRIES[:1])
    with pytest.raises(BankError, match="é0"):
        writer.append(KEYS[1:2], VALUES[1:2], ENTRIES[:1])
    writer.close()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_values_that_fp16_cannot_hold_are_refused(number: float, tmp_path: Path) -> None:
    values = VALUES[:1].clone()
    values[0, 0, 0] = number
    writer = BankWriter(tmp_path, "one", *CODINGS)
    with pytest.raises(BankError, match=r"é0.*finite"):
        writer.append(KEYS[:1], values, ENTRIES[:1])
    writer.close()


def test_the_hash_of_a_manifest_sees_every_field() -> None:
    assert replace(MANIFEST, removed=1).hash != MANIFEST.hash
    assert replace(MANIFEST, compressor={"a": {"bytes": 1}}).hash != MANIFEST.hash
