"""Writing a bank: parts that survive a kill, then one atomic commit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from tinyalign.errors import BankError
from tinyalign.memory.bank import COMPRESSOR, ENTRIES, KEYS, VALUES, MemoryBank
from tinyalign.memory.entries import Entry, write_entries
from tinyalign.memory.files import replace_file, sync_file, sync_folder, write_atomically
from tinyalign.memory.manifest import MANIFEST, Manifest, describe_file

BUILDING = "building"
PROGRESS = "progress.json"
ENTRY_LINES = "entries.jsonl"
PARTS = (KEYS, VALUES, ENTRY_LINES)
DATA_FILES = (KEYS, VALUES, ENTRIES)


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


class BankWriter:
    """Collects entries in FOLDER/building and turns them into a bank on `commit`.

    `append` any number of times, `checkpoint` at the end of each part, `commit` once. A writer
    opened with the same fingerprint after a kill goes on from the last checkpoint.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        """Start a bank, or go on with an unfinished one.

        Raises BankError if the folder has a committed bank or an unfinished one of another
        fingerprint.
        """
        self.folder = Path(folder)
        self.building = self.folder / BUILDING
        if (self.folder / MANIFEST).exists():
            raise BankError(f"{self.folder}: holds a bank already; choose another folder")
        self.building.mkdir(parents=True, exist_ok=True)
        self.progress = self._resume(fingerprint)
        self._files: dict[str, BinaryIO] = {name: self._part(name) for name in PARTS}
        self.ids = {entry.id for entry in self._entries()}

    def _resume(self, fingerprint: str) -> Progress:
        path = self.building / PROGRESS
        if not path.exists():
            return Progress(fingerprint)
        try:
            progress = Progress(**json.loads(path.read_bytes()))
            progress.skipped = [(name, why) for name, why in progress.skipped]
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

        Raises BankError for an id that is there already, for counts that differ, and for
        numbers that are not finite (in fp16, for values).
        """
        if not len(keys) == len(values) == len(entries):
            raise BankError(f"{len(keys)} keys, {len(values)} values, {len(entries)} entries")
        raw_keys = keys.detach().cpu().float().numpy().astype("<f4")
        with np.errstate(over="ignore"):
            raw_values = values.detach().cpu().float().numpy().astype("<f2")
        for row, entry in enumerate(entries):
            if entry.id in self.ids:
                raise BankError(f"sample {entry.id}: in the bank already; ids must be unique")
            if not (np.isfinite(raw_keys[row]).all() and np.isfinite(raw_values[row]).all()):
                raise BankError(f"sample {entry.id}: its key or value is not finite in fp16")
            self.ids.add(entry.id)
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        for name, content in zip(PARTS, (raw_keys.tobytes(), raw_values.tobytes(), lines.encode())):
            self._files[name].write(content)
        self.progress.count += len(entries)

    def skip(self, sample_id: str, reason: str) -> None:
        """Record a sample that is left out."""
        self.progress.skipped.append((sample_id, reason))

    def checkpoint(self, position: int) -> None:
        """Make everything so far survive a kill; `position` is the next sample to read."""
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            self.progress.sizes[name] = file.tell()
        self.progress.position = position
        write_atomically(self.building / PROGRESS, json.dumps(asdict(self.progress)).encode())

    def _entries(self) -> Iterator[Entry]:
        with open(self.building / ENTRY_LINES, encoding="utf-8") as lines:
            for line in lines:
                yield Entry(**json.loads(line))

    def commit(self, manifest: Manifest) -> MemoryBank:
        """Finish the files, then rename them and the manifest into place: now it is a bank.

        `manifest` comes without count and files; both are filled in here. Killed at any point,
        the same build run again commits the same bytes.
        """
        self.checkpoint(self.progress.position)
        self.close()
        write_entries(self.building / ENTRIES, self._entries())
        extra = sorted(p for p in (self.building / COMPRESSOR).rglob("*") if p.is_file())
        names = [*DATA_FILES, *(path.relative_to(self.building).as_posix() for path in extra)]
        for name in names:
            sync_file(self.building / name)
        files = {name: describe_file(self.building / name) for name in names}
        content = asdict(manifest) | {"count": self.progress.count, "files": files}
        Manifest(**content).write(self.building)
        finish_commit(self.folder)
        return MemoryBank.open(self.folder)

    def close(self) -> None:
        """Close the part files; what was not checkpointed is redone by the next build."""
        for file in self._files.values():
            file.close()


def finish_commit(folder: str | Path) -> bool:
    """Carry out, or carry on, a commit: move finished files into place, the manifest last.

    A manifest in FOLDER/building says that everything beside it is complete and on the disk,
    so a commit that was killed half way is completed by doing the rest. Returns whether the
    folder holds a committed bank now.
    """
    folder = Path(folder)
    building = folder / BUILDING
    if (building / MANIFEST).exists():
        for name in (*DATA_FILES, COMPRESSOR):
            if (building / name).exists():
                os.replace(building / name, folder / name)
        sync_folder(folder)
        replace_file(building / MANIFEST, folder / MANIFEST)
    committed = (folder / MANIFEST).exists()
    if committed and building.exists():
        shutil.rmtree(building)
    return committed
