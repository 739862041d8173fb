"""A bank as a parquet file and back: for other tools, for archives, for the hub.

DIR/entries.parquet has one row an entry: its texts, its key, and its value as it is coded. The
file's own metadata says by which models they were made; the Perceiver's files lie beside it.
What is imported is the bank that was exported, down to the last bit of every key and value.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json
from tinyalign.log import progress
from tinyalign.memory.bank.bank import PERCEIVER_FOLDER, MemoryBank
from tinyalign.memory.bank.coding import CodingError
from tinyalign.memory.bank.entries import FIELDS, Entry
from tinyalign.memory.bank.files import cannot_read, sync_file, sync_folder
from tinyalign.memory.bank.lock import cannot_write
from tinyalign.memory.bank.manifest import Manifest, describe_file
from tinyalign.memory.building.changes import new_bank
from tinyalign.memory.perceiver import copy_perceiver

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "entries.parquet"
NOTE = b"tinyalign_bank"
FORMAT_VERSION = 1
PARTIAL = "partial"  # what a folder is named by until it is complete
ROWS = 1024  # entries in a row group, and held in memory at a time
OWN = ("segments", "compressor", "generation", "commit", "removed", "format_version")
"""Fields of a manifest that belong to the folder, not to what is in the bank."""


@dataclass(frozen=True)
class Note:
    """What an exported file says of itself, in its metadata."""

    version: int
    count: int
    """Entries, one a row."""
    manifest: Mapping[str, Any]
    """By which models it was made, and how keys and values are coded."""
    compressor: Mapping[str, Mapping[str, Any]]
    """Name of each file of the Perceiver → its size in bytes and its hash."""
    squared_error: float
    """What coding the values cost (`CodingError`)."""
    squared_norm: float


# -- export ------------------------------------------------------------------------------------


def export_bank(bank: MemoryBank, out: str | Path) -> Path:
    """Write the entries of a bank to OUT/entries.parquet and its Perceiver beside it.

    Removed entries are left out. OUT, or the table in it where OUT is an empty folder, appears
    once all is complete. Raises BankError naming what is damaged in the bank, if there is anything
    in OUT already, and for a full disk.
    """
    out = Path(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BankError(f"{out}: exists already and is not empty; choose another folder")
    except OSError as error:
        raise cannot_read(out, error) from error
    bank.verify()  # what is imported gets new hashes, which would hide the damage for good
    try:
        _write_aside(bank, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    return out


def _write_aside(bank: MemoryBank, out: Path) -> None:
    """Write all files to a folder of our own, then put them into place, the table last."""
    given = out.is_dir()  # it stays the folder it is: it may be where somebody works
    name = f"{PARTIAL}-{secrets.token_hex(4)}"
    aside = out / name if given else out.with_name(f"{out.name}.{name}")
    aside.mkdir(parents=True)
    try:
        copy_perceiver(bank.manifest.perceiver_files, bank.folder, aside)
        _write_table(bank, aside / TABLE)
        sync_file(aside / TABLE)
        if given:
            for path in sorted(aside.iterdir(), key=lambda path: path.name == TABLE):
                os.replace(path, out / path.name)
            sync_folder(out)
        else:
            os.replace(aside, out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_table(bank: MemoryBank, path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    live = bank.live
    note = json.dumps(asdict(_note(bank, len(live))))
    schema = _schema(bank.manifest).with_metadata({NOTE: note})
    numbers = {"use_dictionary": ["source", "instruction", "image_hash"]}  # keys never repeat
    with (
        ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, **numbers) as to,
        progress("Exporting", len(live)) as advance,
    ):
        for start in range(0, len(live), ROWS):
            rows = live[start : start + ROWS]
            arrays = _arrays(bank, rows, schema)
            to.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            advance(len(rows))


def _note(bank: MemoryBank, count: int) -> Note:
    made = {k: v for k, v in asdict(bank.manifest).items() if k not in OWN}
    error = bank.coding_error
    return Note(
        FORMAT_VERSION, count, made, bank.manifest.perceiver_files,
        error.squared_error, error.squared_norm,
    )  # fmt: skip


def _schema(manifest: Manifest) -> pa.Schema:
    """The columns: those of `Entry`, `key` (d_k), and `value`, or `value_codes` with scales."""
    import pyarrow as pa

    coding = manifest.value_coding
    half, size = pa.float16(), coding.n_latents * coding.d_latents
    key = half if manifest.keys_dtype == "float16" else pa.float32()
    columns = [(name, pa.string()) for name in FIELDS]
    columns.append(("key", pa.list_(key, manifest.key_dim)))
    if coding.dtype == "float16":
        columns.append(("value", pa.list_(half, size)))
    else:
        columns.append(("value_codes", pa.list_(pa.int8(), size)))
        columns.append(("value_scales", pa.list_(half, coding.n_latents)))
    return pa.schema(columns)


def _arrays(bank: MemoryBank, rows: np.ndarray, schema: pa.Schema) -> list[pa.Array]:
    import pyarrow as pa

    found = bank.entries.at(rows.tolist())
    entries = [found[row] for row in rows.tolist()]
    records = bank.records[rows]
    numbers = {"key": bank.keys[rows]}
    if bank.coding.dtype == "float16":
        numbers["value"] = records
    else:
        numbers |= {"value_codes": records["codes"], "value_scales": records["scale"]}
    arrays = [pa.array([getattr(entry, name) for entry in entries]) for name in FIELDS]
    for name in schema.names[len(FIELDS) :]:
        flat = pa.array(np.ascontiguousarray(numbers[name]).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, schema.field(name).type.list_size))
    return arrays


# -- import ------------------------------------------------------------------------------------


def import_bank(folder: str | Path, out: str | Path) -> MemoryBank:
    """Make a bank in `out` of what `export_bank` wrote to `folder`.

    Raises BankError naming what is missing, damaged or of another format in `folder`, and for an
    `out` that holds a bank already; nothing of it stays behind then.
    """
    folder = Path(folder)
    note = read_note(folder / TABLE)
    manifest = _manifest(folder / TABLE, note)
    _check_perceiver(folder, note)
    with new_bank(out, hash_json(asdict(note)), manifest) as writer:
        with progress("Importing", note.count) as advance:
            for keys, records, entries in _batches(folder / TABLE, manifest):
                writer.append_coded(keys, records, entries)
                advance(len(entries))
        if writer.progress.count != note.count:
            raise BankError(
                f"{folder / TABLE}: {writer.progress.count} rows, its own note says {note.count}; "
                "it is incomplete, export the bank again"
            )
        writer.progress.coding = CodingError(note.squared_error, note.squared_norm)
        writer.copy_perceiver(note.compressor, folder)
        return writer.commit(manifest)


def read_note(path: Path) -> Note:
    """What an exported file says of itself. BankError if it is no such file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    if not path.is_file():
        raise BankError(
            f"{path}: not found; `tinyalign bank export` writes a folder with {TABLE} and "
            f"{PERCEIVER_FOLDER}/ in it"
        )
    try:
        content = json.loads((read_schema(path).metadata or {})[NOTE])
        version = content["version"]
    except KeyError as error:
        raise BankError(f"{path}: not a bank that TinyAlign exported ({error} missing)") from error
    except (ArrowException, OSError, ValueError) as error:
        raise BankError(f"{path}: damaged, not readable as parquet ({error})") from error
    if version != FORMAT_VERSION:
        raise BankError(
            f"{path}: exported in format {version}, this TinyAlign reads {FORMAT_VERSION}; "
            "upgrade tinyalign-vlm, or export the bank again"
        )
    try:
        return Note(**content)
    except TypeError as error:
        raise BankError(f"{path}: its note cannot be read ({error})") from error


def _manifest(path: Path, note: Note) -> Manifest:
    """The manifest of the bank to be, its codings checked against the file's columns."""
    from pyarrow.parquet import read_schema

    wrong = {f.name for f in fields(Manifest)} - set(OWN) ^ note.manifest.keys()
    if wrong:
        raise BankError(f"{path}: fields missing or unknown: {', '.join(sorted(wrong))}")
    try:
        manifest = Manifest(**note.manifest)
        expected = _schema(manifest)
    except (TypeError, ValueError, ConfigError) as error:
        raise BankError(f"{path}: its note cannot be read ({error})") from error
    found = read_schema(path)
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0 or found.field(index).type != field.type:
            seen = "no such column" if index < 0 else str(found.field(index).type)
            raise BankError(f"{path}: column {field.name} is to be {field.type}, found {seen}")
    return manifest


def _check_perceiver(folder: Path, note: Note) -> None:
    for name, facts in note.compressor.items():
        path = folder / name
        if not path.is_file():
            raise BankError(f"{path}: missing; keys and values mean nothing without it")
        if describe_file(path) != facts:
            raise BankError(f"{path}: changed since the export; restore it, or export again")


def _batches(
    path: Path, manifest: Manifest
) -> Iterator[tuple[np.ndarray, np.ndarray, list[Entry]]]:
    """(keys (B, d_k), coded values (B,), entries) of an exported file, `ROWS` at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    first = 0
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=_schema(manifest).names):
                yield _read(path, batch, manifest, first)
                first += len(batch)
    except (ArrowException, OSError) as error:
        raise BankError(
            f"{path}: damaged after row {first} ({error}); restore it from a copy, or export again"
        ) from error


def _read(
    path: Path, batch: pa.RecordBatch, manifest: Manifest, first: int
) -> tuple[np.ndarray, np.ndarray, list[Entry]]:
    numbers = {}
    for name in batch.schema.names:
        column = batch.column(name)
        flat = column if name in FIELDS else column.flatten()
        if column.null_count or flat.null_count:
            raise BankError(f"{path}: column {name} has empty cells after row {first}")
        if name not in FIELDS:
            numbers[name] = flat.to_numpy(zero_copy_only=False).reshape(len(batch), -1)
            if not np.isfinite(numbers[name]).all():
                raise BankError(f"{path}: {name} is not finite somewhere after row {first}")
    coding = manifest.value_coding
    records = np.empty(len(batch), dtype=coding.record)
    if coding.dtype == "float16":
        records = numbers["value"].reshape(-1, coding.n_latents, coding.d_latents)
    else:
        records["scale"] = numbers["value_scales"]
        records["codes"] = numbers["value_codes"].reshape(records["codes"].shape)
    columns = (batch.column(name).to_pylist() for name in FIELDS)
    return numbers["key"], records, [Entry(*values) for values in zip(*columns)]
