"""Changing a bank while others read it: one writer, and commits that happen whole or not at all.

A commit appends to the arrays, writes one new segment of entries aside, syncs both, and renames
a new manifest into place. Until that rename every reader sees the bank as it was; what a killed
writer left behind is swept away by the next one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from torch import Tensor

from tinyalign.errors import BankError
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.coding import CodingError
from tinyalign.memory.bank.entries import Commit, Entry, write_segment
from tinyalign.memory.bank.files import sync_file, sync_folder
from tinyalign.memory.bank.lock import LOCK, WriteLock, cannot_write
from tinyalign.memory.bank.manifest import MANIFEST, Manifest, SegmentRecord
from tinyalign.memory.bank.verification import wrong_segment
from tinyalign.memory.building.writer import coded, describe_segment

# What a writer names its files; nothing else in the folder is ever deleted.
OURS = re.compile(
    rf"entries-\d+-\d+\.sqlite(-journal)?|(keys|values)-\d+\.(f16|f32|i8)|{re.escape(MANIFEST)}\.tmp"
)
COPY_ROWS = 4096  # rows copied at a time when compacting


class BankEditor:
    """Adds and removes entries of a committed bank; use it in a `with` statement.

    Nothing is in the bank before `commit`, which may be called any number of times. On leaving
    without one, or with an exception, what was not committed is undone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> BankEditor:
        """Take the lock and sweep up after a killed writer. BankError if another one holds it."""
        MemoryBank.open(self.folder)  # before a lock file is made where no bank is
        self._lock = WriteLock(self.folder)
        self._lock.__enter__()
        try:
            self.bank = MemoryBank.open(self.folder)
            sweep(self.folder, self.manifest)
            self._open_files()
        except OSError as error:
            self._lock.__exit__()
            raise cannot_write(self.folder, error) from error
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Undo what was not committed, and let the next writer in."""
        try:
            for file in (self._keys, self._values):
                with suppress(OSError):  # the disk is full: what did not fit is not wanted either
                    file.close()
            undo(self.folder)
        finally:
            self._lock.__exit__()

    @property
    def manifest(self) -> Manifest:
        """What is committed."""
        return self.bank.manifest

    @property
    def ids(self) -> _Ids:
        """The ids in the bank, changes that were not committed included, for `in`."""
        return _Ids(self)

    def _open_files(self) -> None:
        keys, values = self.manifest.keys_name, self.manifest.values_name
        self._keys: BinaryIO = (self.folder / keys).open("ab")
        self._values: BinaryIO = (self.folder / values).open("ab")
        self._broken = False
        self._forget()

    def _forget(self) -> None:
        self.added: dict[str, Entry] = {}
        self.skipped: list[tuple[str, str]] = []
        self._gone: set[int] = set()
        self._error = CodingError()

    # -- changes ------------------------------------------------------------------------------

    def append(self, keys: Tensor, values: Tensor, entries: Sequence[Entry]) -> None:
        """Add keys (B, d_k), values (B, 32, 96) and their B entries, in order.

        Raises BankError for an id that is in the bank, for counts or shapes that differ, for
        numbers that are not finite, and for a full disk.
        """
        self._check_whole()
        for name, count in Counter(entry.id for entry in entries).items():
            if count > 1:
                raise BankError(f"sample {name}: given {count} times; ids must be unique")
            if name in self.ids:
                raise BankError(
                    f"sample {name}: in the bank already; remove it first, or update it"
                )
        one = coded(keys, values, entries, self.manifest.key_coding, self.manifest.value_coding)
        self._broken = True  # until both files have all of it
        try:
            for file, content in ((self._keys, one.keys), (self._values, one.values)):
                file.write(content.tobytes())
                file.flush()  # nothing in a buffer that a forked worker could write again
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._broken = False
        self.added.update((entry.id, entry) for entry in entries)
        self._error += one.error

    def skip(self, sample_id: str, reason: str) -> None:
        """Note a sample that is left out."""
        self.skipped.append((sample_id, reason))

    def remove(self, rows: Iterable[int]) -> int:
        """Remove committed rows; returns how many were still there.

        Raises BankError for a row that the bank does not have.
        """
        wanted = {int(row) for row in rows}
        if outside := sorted(row for row in wanted if not 0 <= row < self.bank.rows):
            raise BankError(f"{self.folder}: no row {outside[0]}; it has {self.bank.rows} rows")
        there = wanted - set(self.bank.removed.tolist()) - self._gone
        self._gone |= there
        return len(there)

    # -- commits ------------------------------------------------------------------------------

    def commit(self, note: str) -> MemoryBank:
        """Make all changes so far part of the bank, in one step; returns the bank as it is now.

        note: what it was, in a few words. Without changes nothing is written.
        """
        self._check_whole()
        if not self.added and not self._gone:
            return self.bank
        self._check_alone()
        self._broken = True  # a failed sync must not be tried again: it would seem to succeed
        try:
            for file in (self._keys, self._values):
                os.fsync(file.fileno())
            manifest, replaced = self._new_manifest(note)
            sync_folder(self.folder)
            manifest.write(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._broken = False
        self._forget()
        self.bank = MemoryBank.open(self.folder)
        for name in replaced:
            _unlink(self.folder / name)
        return self.bank

    def _check_whole(self) -> None:
        """BankError after a write that failed half way: what would follow it has no place."""
        if self._broken:
            raise BankError(
                f"{self.folder}: an earlier change failed while it was written; leave the `with` "
                "statement, which undoes what was not committed, and make the changes again"
            )

    def _check_alone(self) -> None:
        """BankError if someone else wrote here, lock or no lock."""
        rows, same = self.bank.rows + len(self.added), Manifest.read(self.folder) == self.manifest
        now = self.manifest
        for file, record in (
            (self._keys, now.key_coding.record),
            (self._values, now.value_coding.record),
        ):
            same = same and os.fstat(file.fileno()).st_size == rows * record.itemsize
        if not same:
            self._broken = True
            raise BankError(
                f"{self.folder}: another process changed this bank meanwhile, although this one "
                f"holds its lock; was {LOCK} removed? Nothing was committed; make the changes again"
            )

    def _new_manifest(self, note: str) -> tuple[Manifest, list[str]]:
        """Write the segment of this commit; (the manifest with it, segments it replaces)."""
        old = self.manifest
        new = replace(old, commit=old.commit + 1)
        kept, merged = _to_merge(old.segments, len(self.added) + len(self._gone))
        if wrong := [text for one in merged for text in wrong_segment(self.folder, old, one)]:
            raise BankError("; ".join(wrong))  # a new hash would hide the damage for good
        start = merged[0].start if merged else old.rows
        stop = old.rows + len(self.added)
        earlier = self.bank.entries.segments[len(kept) :]
        entries = [pair for segment in earlier for pair in segment.entries()]
        entries += enumerate(self.added.values(), start=old.rows)
        removed = sorted({*self._gone, *(row for one in earlier for row in one.removed())})
        commits = [commit for segment in earlier for commit in segment.commits()]
        commits.append(Commit(new.commit, len(self.added), len(self._gone), note))
        path = self.folder / new.segment_name
        write_segment(path, entries, removed, commits)
        sync_file(path)
        record = describe_segment(
            path, self.folder / old.keys_name, self.folder / old.values_name, old,
            rows=(start, stop), removals=len(removed),
            error=sum((one.coding_error for one in merged), self._error),
        )  # fmt: skip
        new = replace(new, segments=(*kept, record), removed=old.removed + len(self._gone))
        return new, [one.name for one in merged]


class _Ids:
    """The live ids of a bank under change, asked one at a time."""

    def __init__(self, editor: BankEditor) -> None:
        self.editor = editor

    def __contains__(self, name: str) -> bool:
        if name in self.editor.added:
            return True
        rows = self.editor.bank.entries.rows_with("id", [name])
        gone = self.editor.bank.removed
        return any(row not in self.editor._gone and row not in gone for row in rows)


def _to_merge(
    segments: Sequence[SegmentRecord], size: int
) -> tuple[Sequence[SegmentRecord], Sequence[SegmentRecord]]:
    """(segments that stay, newest segments that are no larger than what comes after them)."""
    cut = len(segments)
    while cut and segments[cut - 1].size <= size:
        cut -= 1
        size += segments[cut].size
    return segments[:cut], segments[cut:]


def sweep(folder: Path, manifest: Manifest) -> None:
    """Undo what a killed writer left: longer arrays, files that the manifest does not name.

    Raises OSError where the arrays cannot be cut. A file that cannot be deleted waits.
    """
    sizes = manifest.sizes
    for name in (manifest.keys_name, manifest.values_name):
        if (folder / name).stat().st_size > sizes[name]:
            os.truncate(folder / name, sizes[name])
    ours = (path for path in folder.iterdir() if OURS.fullmatch(path.name))
    if stray := [path for path in ours if path.name not in sizes]:
        sync_folder(folder)  # the manifest may be there by a rename that is not on the disk yet
        for path in stray:
            _unlink(path)


def undo(folder: Path) -> None:
    """Sweep where an error may be under way already, which must not be hidden by a second one."""
    try:
        sweep(folder, Manifest.read(folder))
    except (OSError, BankError) as error:
        logger.warning("bank: the next writer will clear up %s (%s)", folder, error)


def _unlink(path: Path) -> None:
    """Delete a file that no manifest names. Windows refuses while a reader has it open."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.info("bank: %s is deleted by a later change (%s)", path, error)


def compact(folder: str | Path) -> MemoryBank:
    """Write the bank anew without its removed rows, in one commit; rows are renumbered.

    Readers that have it open keep the old view until they `refresh`. It needs room for a second
    copy while it runs. Returns the bank as it is now. Raises BankError for a damaged bank, whose
    damage new hashes would hide.
    """
    folder = Path(folder)
    MemoryBank.open(folder)  # before a lock file is made where no bank is
    with WriteLock(folder):
        bank = MemoryBank.open(folder)
        try:
            sweep(folder, bank.manifest)
            if not bank.manifest.removed and len(bank.manifest.segments) == 1:
                return bank
            bank.verify()
            new = _compacted(bank)
            sync_folder(folder)
            new.write(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
        finally:
            undo(folder)
        return MemoryBank.open(folder)


def _compacted(bank: MemoryBank) -> Manifest:
    """Write the files of the next generation; its manifest."""
    folder, old, live = bank.folder, bank.manifest, bank.live
    new = replace(old, commit=old.commit + 1, generation=old.generation + 1, removed=0)
    for name, array in ((new.keys_name, bank.keys), (new.values_name, bank.records)):
        with open(folder / name, "wb") as file:
            for start in range(0, len(live), COPY_ROWS):
                file.write(np.ascontiguousarray(array[live[start : start + COPY_ROWS]]).tobytes())
            file.flush()
            os.fsync(file.fileno())
    position = {int(row): place for place, row in enumerate(live)}
    pairs = (pair for segment in bank.entries.segments for pair in segment.entries())
    entries = ((position[row], entry) for row, entry in pairs if row in position)
    commits = [*bank.entries.commits(), Commit(new.commit, 0, 0, "compacted")]
    path = folder / new.segment_name
    write_segment(path, entries, (), commits)
    sync_file(path)
    record = describe_segment(
        path, folder / new.keys_name, folder / new.values_name, new,
        rows=(0, len(live)), removals=0, error=bank.coding_error,
    )  # fmt: skip
    return replace(new, segments=(record,))
