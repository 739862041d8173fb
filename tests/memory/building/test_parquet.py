"""Banks as parquet: what is imported is what was exported, and damage is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building import parquet
from tinyalign.memory.building.builder import build_bank
from tinyalign.memory.building.changes import remove_entries
from tinyalign.memory.building.parquet import TABLE, export_bank, import_bank


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of five, so that twelve entries are several."""
    monkeypatch.setattr(parquet, "ROWS", 5)


@pytest.fixture(params=["int8", "float16"])
def any_bank(request, samples, vision, perceiver, tmp_path: Path) -> MemoryBank:
    keys = {"int8": "float16", "float16": "float32"}[request.param]
    codings = {"values_dtype": request.param, "keys_dtype": keys}
    return build_bank(samples, vision, perceiver, tmp_path / "original", **codings).bank


def test_a_bank_comes_back_byte_by_byte(any_bank: MemoryBank, tmp_path: Path) -> None:
    export_bank(any_bank, tmp_path / "out")
    back = import_bank(tmp_path / "out", tmp_path / "back")
    assert content(back.folder) == content(any_bank.folder)
    back.verify()


def test_removed_entries_are_not_exported(bank: MemoryBank, tmp_path: Path) -> None:
    shutil.copytree(bank.folder, tmp_path / "bank")
    smaller = remove_entries(tmp_path / "bank", ids=["s0", "s7"]).bank
    export_bank(smaller, tmp_path / "out")
    back = import_bank(tmp_path / "out", tmp_path / "back")
    live = smaller.live
    assert [back.entry(row) for row in range(10)] == [smaller.entry(row) for row in live]
    assert (back.keys == smaller.keys[live]).all()
    assert (back.records == smaller.records[live]).all()
    back.verify()


def test_other_tools_read_texts_keys_and_codes(bank: MemoryBank, tmp_path: Path) -> None:
    table = pq.ParquetFile(export_bank(bank, tmp_path / "out") / TABLE)
    assert table.num_row_groups == 3
    rows = table.read().to_pylist()
    assert [row["id"] for row in rows] == bank.ids
    assert rows[3]["text"] == bank.entry(3).text
    np.testing.assert_array_equal(np.array(rows[3]["key"], np.float16), bank.keys[3])
    scales = np.array(rows[3]["value_scales"], np.float32)[:, None]
    codes = np.array(rows[3]["value_codes"]).reshape(8, 8)
    np.testing.assert_array_equal(codes * scales, bank.values[3])


def test_nothing_is_overwritten(bank: MemoryBank, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    export_bank(bank, out)
    before = content(out)
    with pytest.raises(BankError, match="not empty"):
        export_bank(bank, out)
    assert content(out) == before
    with pytest.raises(BankError, match="holds a bank already"):
        import_bank(out, bank.folder)


def test_a_folder_beside_the_target_is_nobodys_business_but_its_owners(bank, tmp_path) -> None:
    mine = tmp_path / "out.tmp"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    export_bank(bank, tmp_path / "out")
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.tmp"}


def test_an_empty_folder_that_one_is_in_can_be_exported_to(bank, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_bank(bank, ".")
    assert {path.name for path in tmp_path.iterdir()} == {TABLE, "compressor"}
    assert os.path.samefile(".", tmp_path)  # not another one in its place
    import_bank(".", "back").verify()


def test_an_export_has_the_rights_of_new_files(bank, tmp_path) -> None:
    before = os.umask(0o027)
    try:
        out = export_bank(bank, tmp_path / "out")
        back = import_bank(out, tmp_path / "back").folder
    finally:
        os.umask(before)
    found = [*out.rglob("*"), out, *(back / "compressor").rglob("*")]
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in found}
    assert modes == {(True, 0o750), (False, 0o640)}


def test_a_failed_export_leaves_nothing(bank: MemoryBank, tmp_path: Path, monkeypatch) -> None:
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "_write_table", full)
    with pytest.raises(BankError, match="No space left"):
        export_bank(bank, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(BankError, match="No space left"):
        export_bank(bank, tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def edited(folder: Path, change) -> None:
    """Put `change(table)` in place of the exported table, its metadata kept."""
    table = pq.read_table(folder / TABLE)
    new = change(table)
    metadata = {**table.schema.metadata, **(new.schema.metadata or {})}
    pq.write_table(new.replace_schema_metadata(metadata), folder / TABLE)


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, field.type))


def with_note(table: pa.Table, **changes) -> pa.Table:
    note = json.loads(table.schema.metadata[parquet.NOTE]) | changes
    return table.replace_schema_metadata({parquet.NOTE: json.dumps(note)})


def nan_key(table: pa.Table) -> pa.Table:
    keys = table["key"].to_pylist()
    keys[7][0] = float("nan")
    return with_column(table, "key", keys)


EDITS = {
    "has empty cells": lambda t: with_column(t, "text", [None, *t["text"].to_pylist()[1:]]),
    "column key is to be .* found no such column": lambda t: t.drop_columns(["key"]),
    "column source is to be string, found int64": lambda t: t.set_column(
        t.schema.get_field_index("source"), "source", pa.array([1] * len(t))
    ),
    "key is not finite": nan_key,
    "s0: in the bank already": lambda t: with_column(t, "id", ["s0"] * len(t)),
    "4 rows, its own note says 12": lambda t: t.slice(0, 4),
    "exported in format 9": lambda t: with_note(t, version=9),
    "fields missing or unknown": lambda t: with_note(t, manifest={"alpha": 1}),
}


@pytest.mark.parametrize("message", EDITS)
def test_an_edited_table_is_refused_and_nothing_stays(
    message: str, bank: MemoryBank, tmp_path: Path
) -> None:
    out = export_bank(bank, tmp_path / "out")
    edited(out, EDITS[message])
    with pytest.raises(BankError, match=message):
        import_bank(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_damage_is_named(bank: MemoryBank, tmp_path: Path) -> None:
    out = export_bank(bank, tmp_path / "out")
    table = out / TABLE
    whole = table.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[: len(whole) // 3] + b"\xff" * 40 + whole[len(whole) // 3 + 40 :],
        b"no parquet",
    ):
        table.write_bytes(damaged)
        with pytest.raises(BankError, match=r"entries\.parquet: damaged"):
            import_bank(out, tmp_path / "back")
    table.write_bytes(whole)
    weights = out / "compressor" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BankError, match=r"model\.safetensors: changed since the export"):
        import_bank(out, tmp_path / "back")
    weights.unlink()
    with pytest.raises(BankError, match=r"model\.safetensors: missing"):
        import_bank(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_parquet_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"entries\.parquet: not found"):
        import_bank(tmp_path, tmp_path / "back")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / TABLE)
    with pytest.raises(BankError, match="not a bank that TinyAlign exported"):
        import_bank(tmp_path, tmp_path / "back")
