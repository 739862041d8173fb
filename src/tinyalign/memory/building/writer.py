"""Writing a bank: parts that survive a kill, then one atomic commit."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from tinyalign.errors import BankError, first_few
from tinyalign.hashing import hash_range
from tinyalign.memory.bank.bank import PERCEIVER_FOLDER, MemoryBank
from tinyalign.memory.bank.coding import CodingError, KeyCoding, ValueCoding
from tinyalign.memory.bank.entries import Commit, Entry, write_segment
from tinyalign.memory.bank.files import replace_file, sync_file, sync_folder, write_atomically
from tinyalign.memory.bank.lock import LOCK, cannot_write
from tinyalign.memory.bank.manifest import MANIFEST, Manifest, SegmentRecord, describe_file
from tinyalign.memory.perceiver import copy_perceiver

BUILDING = "building"
PROGRESS = "progress.json"
KEYS, VALUES, ENTRY_LINES = "keys", "values", "entries.jsonl"
PARTS = (KEYS, VALUES, ENTRY_LINES)


@dataclass
class Progress:
    """How far a build has come: written after its data, so it never promises too much."""

    fingerprint: str
    """Hash of everything that decides the bank's bytes."""
    position: int = 0
    """Samples read so far."""
    count: int = 0
    """Entries written so far."""
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    """Committed bytes of each part file; what lies beyond is from an unfinished part."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Ids left out, and why."""
    coding: CodingError = field(default_factory=CodingError)
    """What coding the values cost so far."""


@dataclass(frozen=True)
class Coded:
    """Keys and values as they go to disk, checked."""

    keys: np.ndarray
    values: np.ndarray
    error: CodingError


def coded(
    keys: Tensor, values: Tensor, entries: Sequence[Entry], key: KeyCoding, value: ValueCoding
) -> Coded:
    """Code keys (B, d_k) and values (B, 32, 96) of B entries.

    Raises BankError for counts or shapes that differ, and names the sample whose numbers are
    not finite once coded.
    """
    if not len(keys) == len(values) == len(entries):
        raise BankError(f"{len(keys)} keys, {len(values)} values, {len(entries)} entries")
    shapes = (tuple(keys.shape[1:]), tuple(values.shape[1:]))
    expected = ((key.width,), (value.n_latents, value.d_latents))
    if shapes != expected:
        raise BankError(f"keys and values of shapes {shapes}; the bank's are {expected}")
    exact = values.detach().cpu().float().numpy()
    raw_keys = key.encode(keys.detach().cpu().float().numpy())
    raw_values = value.encode(exact)
    decoded = value.decode(raw_values)
    for row, entry in enumerate(entries):
        if not (np.isfinite(raw_keys[row]).all() and np.isfinite(decoded[row]).all()):
            raise BankError(
                f"sample {entry.id}: its key or value is not finite as {key.dtype} and "
                f"{value.dtype}; check its image"
            )
    error = CodingError()
    error.add(exact, decoded)
    return Coded(raw_keys, raw_values, error)


def check_vacant(folder: str | Path) -> None:
    """BankError for a folder with files of something that is no bank, finished or begun."""
    folder = Path(folder)
    if not folder.is_dir() or (folder / BUILDING).exists() or (folder / MANIFEST).exists():
        return
    found = sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, BUILDING))
    if found:
        raise BankError(
            f"{folder}: expected an empty or a new folder for a bank, found other files "
            f"({first_few(found, 3)}); choose another folder"
        )


class BankWriter:
    """Collects entries in a folder aside and turns them into a bank on `commit`.

    `append` any number of times, `checkpoint` at the end of each part, `commit` once. A writer
    opened with the same fingerprint after a kill goes on from the last checkpoint.
    """

    def __init__(
        self, folder: str | Path, fingerprint: str, keys: KeyCoding, values: ValueCoding,
        part: str = "",
    ) -> None:  # fmt: skip
        """Start a bank, or go on with an unfinished one. part: the name of one process's share.

        Raises BankError if the folder has a committed bank or an unfinished one of another
        fingerprint.
        """
        self.folder = Path(folder)
        self.building = self.folder / BUILDING / part
        self.key_coding, self.value_coding = keys, values
        if (self.folder / MANIFEST).exists():
            raise BankError(f"{self.folder}: holds a bank already; choose another folder")
        try:
            self.building.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self.progress = self._resume(fingerprint)
        self._files: dict[str, BinaryIO] = {name: self._part(name) for name in PARTS}
        self.ids = {entry.id for entry in self.written_entries()}

    def _resume(self, fingerprint: str) -> Progress:
        path = self.building / PROGRESS
        if not path.exists():
            return Progress(fingerprint)
        try:
            progress = Progress(**json.loads(path.read_bytes()))
            progress.skipped = [(name, why) for name, why in progress.skipped]
            progress.coding = CodingError(**progress.coding)  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            raise BankError(f"{path}: damaged ({error}); remove {self.building}") from error
        if progress.fingerprint != fingerprint:
            raise BankError(
                f"{path}: an unfinished build from other data, models or settings "
                f"({progress.fingerprint}, this one is {fingerprint}); "
                f"finish that one, or remove {self.building} to start over"
            )
        return progress

    def _part(self, name: str) -> BinaryIO:
        """The part file, cut back to what the last checkpoint vouches for."""
        path = self.building / name
        path.touch()
        size, committed = path.stat().st_size, self.progress.sizes[name]
        if size < committed:
            raise BankError(
                f"{path}: expected at least {committed} bytes, found {size}; "
                f"remove {self.building} to start over"
            )
        os.truncate(path, committed)
        return open(path, "ab")

    def append(self, keys: Tensor, values: Tensor, entries: Sequence[Entry]) -> None:
        """Add keys (B, d_k), values (B, 32, 96) and their B entries.

        Raises BankError for an id that is there already, for counts that differ, for numbers
        that are not finite once coded, and for a full disk.
        """
        one = coded(keys, values, entries, self.key_coding, self.value_coding)
        self.append_coded(one.keys, one.values, entries)
        self.progress.coding += one.error

    def append_coded(self, keys: np.ndarray, values: np.ndarray, entries: Sequence[Entry]) -> None:
        """Add rows that are coded already, as another bank has them."""
        new = {entry.id for entry in entries}
        if len(new) < len(entries) or not new.isdisjoint(self.ids):
            counts = Counter([*self.ids, *(entry.id for entry in entries)])
            name = next(entry.id for entry in entries if counts[entry.id] > 1)
            raise BankError(f"sample {name}: in the bank already; ids must be unique")
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        contents = (np.ascontiguousarray(keys), np.ascontiguousarray(values))
        self._write((*(array.tobytes() for array in contents), lines.encode()))
        self.ids |= new
        self.progress.count += len(entries)

    def copy_perceiver(self, names: Iterable[str], folder: Path) -> None:
        """Take over the Perceiver of another folder, as it is; names: as in a manifest.

        Raises BankError for a file that cannot be read, and for a full disk.
        """
        try:
            copy_perceiver(names, folder, self.building)
        except OSError as error:
            raise cannot_write(self.building, error) from error

    def append_part(self, part: BankWriter) -> None:
        """Add all that another process wrote and checkpointed, byte by byte."""
        for name in PARTS:
            with open(part.building / name, "rb") as file:
                shutil.copyfileobj(file, self._files[name])
        self.progress.count += part.progress.count
        self.progress.coding += part.progress.coding
        self.progress.skipped += part.progress.skipped

    def _write(self, contents: Sequence[bytes]) -> None:
        try:
            for name, content in zip(PARTS, contents):
                self._files[name].write(content)
                self._files[name].flush()  # nothing that a forked worker could write again
        except OSError as error:
            raise cannot_write(self.building, error) from error

    def restart(self) -> None:
        """Drop what was collected, as before the first `append`."""
        self.close()
        self.progress = Progress(self.progress.fingerprint)
        self._files = {name: self._part(name) for name in PARTS}
        self.ids = set()

    def skip(self, sample_id: str, reason: str) -> None:
        """Record a sample that is left out."""
        self.progress.skipped.append((sample_id, reason))

    def checkpoint(self, position: int) -> None:
        """Make everything so far survive a kill; `position` is the next sample to read.

        Raises BankError for a full disk, and after a write that failed half way.
        """
        try:
            for name, file in self._files.items():
                file.flush()
                os.fsync(file.fileno())
                self.progress.sizes[name] = file.tell()
            self._check_sizes()
            self.progress.position = position
            write_atomically(self.building / PROGRESS, json.dumps(asdict(self.progress)).encode())
        except OSError as error:
            raise cannot_write(self.building, error) from error

    def _check_sizes(self) -> None:
        count, sizes = self.progress.count, self.progress.sizes
        for name, coding in ((KEYS, self.key_coding), (VALUES, self.value_coding)):
            if sizes[name] != count * coding.record.itemsize:
                raise BankError(
                    f"{self.building / name}: {sizes[name]} bytes, {count} rows need "
                    f"{count * coding.record.itemsize}; a write failed half way. Run the same "
                    "build again: it goes on from the last checkpoint"
                )

    def written_entries(self) -> Iterator[Entry]:
        """What was appended so far and reached the file."""
        with open(self.building / ENTRY_LINES, encoding="utf-8") as lines:
            for line in lines:
                yield Entry(**json.loads(line))

    def commit(self, manifest: Manifest) -> MemoryBank:
        """Finish the files, then rename them and the manifest into place: now it is a bank.

        `manifest` comes without segments and Perceiver; both are filled in here. Killed at any
        point, the same build run again commits the same bytes.
        """
        self.checkpoint(self.progress.position)
        self.close()
        try:
            self._finish(manifest)
            finish_commit(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return MemoryBank.open(self.folder)

    def _finish(self, manifest: Manifest) -> None:
        count = self.progress.count
        name = manifest.segment_name
        write_segment(
            self.building / name,
            enumerate(self.written_entries()),
            (),
            [Commit(manifest.commit, count, 0, "built")],
        )
        extra = sorted(p for p in (self.building / PERCEIVER_FOLDER).rglob("*") if p.is_file())
        for path in (self.building / name, *extra):
            sync_file(path)
        for folder in {path.parent for path in extra} | {self.building, self.folder}:
            sync_folder(folder)
        with suppress(PermissionError):
            sync_folder(self.folder.absolute().parent)  # where the bank's folder may be new
        files = {p.relative_to(self.building).as_posix(): describe_file(p) for p in extra}
        segment = describe_segment(
            self.building / name, self.building / KEYS, self.building / VALUES, manifest,
            rows=(0, count), removals=0, error=self.progress.coding,
        )  # fmt: skip
        replace(manifest, compressor=files, segments=(segment,)).write(self.building)

    def close(self) -> None:
        """Close the part files; what was not checkpointed is redone by the next build."""
        for file in self._files.values():
            file.close()


def describe_segment(
    path: Path, keys: Path, values: Path, manifest: Manifest, *,
    rows: tuple[int, int], removals: int, error: CodingError,
) -> SegmentRecord:  # fmt: skip
    """The record of a segment that was written: rows start..stop-1 of the files given."""
    start, stop = rows
    sizes = (manifest.key_coding.record.itemsize, manifest.value_coding.record.itemsize)
    hashes = [hash_range(p, start * n, stop * n) for p, n in zip((keys, values), sizes)]
    facts = describe_file(path)
    return SegmentRecord(
        name=path.name,
        start=start,
        stop=stop,
        removals=removals,
        bytes=facts["bytes"],
        hash=facts["hash"],
        keys_hash=hashes[0],
        values_hash=hashes[1],
        squared_error=error.squared_error,
        squared_norm=error.squared_norm,
    )


def finish_commit(folder: str | Path) -> bool:
    """Carry out, or carry on, a commit: move finished files into place, the manifest last.

    A manifest in FOLDER/building says that everything beside it is complete and on the disk,
    so a commit that was killed half way is completed by doing the rest. Returns whether the
    folder holds a committed bank now.
    """
    folder = Path(folder)
    building = folder / BUILDING
    if (building / MANIFEST).exists():
        manifest = Manifest.read(building)
        moves = {
            KEYS: manifest.keys_name,
            VALUES: manifest.values_name,
            PERCEIVER_FOLDER: PERCEIVER_FOLDER,
        }
        for name, final in (moves | {one.name: one.name for one in manifest.segments}).items():
            if (building / name).exists():
                os.replace(building / name, folder / final)
        sync_folder(folder)
        replace_file(building / MANIFEST, folder / MANIFEST)
    committed = (folder / MANIFEST).exists()
    if committed and building.exists():
        shutil.rmtree(building)
    return committed
