"""The memory bank M of the paper: one folder, opened by memory map, checked on opening."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import BankError
from tinyalign.lazy import former
from tinyalign.memory.bank.coding import CodingError
from tinyalign.memory.bank.entries import Entries, Entry
from tinyalign.memory.bank.file_watch import Watch
from tinyalign.memory.bank.files import cannot_read
from tinyalign.memory.bank.manifest import MANIFEST, Manifest
from tinyalign.memory.bank.verification import damage, removed_rows, wrong_sizes

PERCEIVER_FOLDER = "compressor"
"""Where a bank keeps its Perceiver: the name that it has had from the start."""


class MemoryBank:
    """A reader's view of a bank: keys K_m, values E_R, and who they belong to.

    A row is an entry's place on disk and keeps its number until the bank is compacted; removed
    entries leave their row behind. A view stays as it was opened while a writer adds entries,
    until `refresh`; removals show at once. The folder also holds, in compressor/, the Perceiver,
    tokenizer and key function that made it, so that it can be queried with nothing else at hand.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use `MemoryBank.open`."""
        self.folder = folder
        self.manifest = manifest
        self.entries = Entries([self.folder / one.name for one in manifest.segments])
        self.coding = manifest.value_coding
        self.keys = _mapped(
            self.folder / manifest.keys_name, manifest.key_coding.record, manifest.rows
        )
        self.records = _mapped(
            self.folder / manifest.values_name, self.coding.record, manifest.rows
        )
        self._removed: np.ndarray | None = None
        self._watch: Watch | None = None

    @classmethod
    def open(cls, folder: str | Path, generation: int | None = None) -> MemoryBank:
        """Map a bank's files. Takes milliseconds whatever its size; file hashes are not read.

        generation: refuse a bank that was compacted since, because rows were renumbered.

        Raises BankError naming every file that is missing, damaged, too short, or from another
        format. `verify` checks the content too.
        """
        folder = Path(folder)
        while True:
            manifest = Manifest.read(folder)
            if generation not in (None, manifest.generation):
                raise BankError(f"{folder}: was compacted since it was opened; open it anew")
            try:
                if wrong := wrong_sizes(folder, manifest.sizes):
                    raise BankError("\n".join(wrong.values()))
                return cls(folder, manifest)
            except (BankError, OSError) as error:
                if Manifest.read(folder).hash != manifest.hash:
                    continue  # a writer committed between the two: look again
                if isinstance(error, OSError):
                    raise cannot_read(folder, error) from error
                raise

    def refresh(self) -> bool:
        """Show what was committed since; returns whether anything was.

        After a compaction rows have other numbers: `manifest.generation` tells. Threads that
        share a bank refresh it between searches, not during one.
        """
        before, latest = self.hash, MemoryBank.open(self.folder)
        if latest.hash != before:
            self.__dict__ = latest.__dict__  # in one step, for other threads
        return latest.hash != before

    def __reduce__(self) -> tuple:
        # workers map the files instead of copying them
        return MemoryBank.open, (self.folder.absolute(), self.manifest.generation)

    def __len__(self) -> int:
        return self.rows - len(self.removed)

    @property
    def rows(self) -> int:
        """Rows on disk that this view shows, removed ones included."""
        return self.manifest.rows

    @property
    def hash(self) -> str:
        """The bank's identity; changes with any byte of its content."""
        return self.manifest.hash

    @property
    def coding_error(self) -> CodingError:
        """What coding the values cost, removed ones included; nothing where no entry is left."""
        return self.manifest.coding_error if len(self) else CodingError()

    compressor_folder = former("compressor_folder", "perceiver_folder")

    @property
    def perceiver_folder(self) -> Path:
        """Where the Perceiver, its tokenizer and the key function lie."""
        return self.folder / PERCEIVER_FOLDER

    # -- removals -----------------------------------------------------------------------------

    @property
    def removed(self) -> np.ndarray:
        """Rows of this view that are no longer in the bank (int64, sorted), as of now.

        Looks each time whether the manifest was replaced, so that what another process removed is
        gone from the next search, also if the bank was compacted since. A view whose folder is
        gone keeps its last answer. Raises BankError where the manifest is damaged.
        """
        removed, watch = self._removed, self._watch
        if removed is None or watch is None or watch.changed():
            watch = Watch(self.folder / MANIFEST)  # before reading: what comes later is seen later
            removed = self._removed_now()
            self._removed, self._watch = removed, watch
        return removed

    def _removed_now(self) -> np.ndarray:
        if not (self.folder / MANIFEST).exists():  # the folder is gone, the view lives on
            return self._removed_here() if self._removed is None else self._removed
        if Manifest.read(self.folder).hash == self.hash:
            return self._removed_here()
        latest = MemoryBank.open(self.folder)
        if not latest.manifest.keeps_rows_of(self.manifest):
            return self._not_in(latest)
        rows = latest._removed_here()
        return rows[rows < self.rows]

    def _removed_here(self) -> np.ndarray:
        """Rows that were removed as of this view's own commit."""
        return removed_rows(self.folder, self.manifest, self.entries)

    def _not_in(self, other: MemoryBank) -> np.ndarray:
        """Rows whose entries are not in another bank: what this one became when compacted."""
        before = self._removed_here() if self._removed is None else self._removed
        there = other.entries.contents()[other.live]
        lost = ~np.isin(self.entries.contents(), there)
        return np.union1d(before, lost.nonzero()[0])

    @property
    def live(self) -> np.ndarray:
        """Rows that are in the bank (int64, sorted)."""
        keep = np.ones(self.rows, dtype=bool)
        keep[self.removed] = False
        return keep.nonzero()[0]

    # -- entries ------------------------------------------------------------------------------

    @cached_property
    def ids(self) -> list[str]:
        """Sample ids by row, removed ones included."""
        return self.entries.column("id")

    @cached_property
    def texts(self) -> list[str]:
        """Value texts by row, removed ones included."""
        return self.entries.column("text")

    @cached_property
    def image_hashes(self) -> list[str]:
        """Hashes of the decoded images by row, removed ones included."""
        return self.entries.column("image_hash")

    @cached_property
    def sources(self) -> list[str]:
        """Data sets by row, removed ones included."""
        return self.entries.column("source")

    def entry(self, row: int) -> Entry:
        """The entry at a row. Raises IndexError outside 0..rows-1."""
        try:
            return self.entries.at([row])[row]
        except KeyError:
            raise IndexError(f"row {row} of a bank with {self.rows} rows") from None

    def rows_of(self, ids: Iterable[str] = (), image_hashes: Iterable[str] = ()) -> list[int]:
        """Rows whose id or whose image is among these: what a query must not get, sorted."""
        by_id = self.entries.rows_with("id", ids)
        return sorted({*by_id, *self.entries.rows_with("image_hash", image_hashes)})

    def rows_from(self, sources: Iterable[str]) -> np.ndarray:
        """Rows in the bank that came from these data sets (int64, sorted).

        Raises BankError naming the sources there are, for one that is not among them.
        """
        rows = np.asarray(
            self.entries.rows_with("source", self.known_sources(sources)), dtype=np.int64
        )
        return np.setdiff1d(rows, self.removed, assume_unique=True)

    def known_sources(self, sources: Iterable[str]) -> list[str]:
        """These data sets, sorted; raises BankError as `rows_from` does."""
        wanted, known = sorted(set(sources)), self.entries.sources()
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise BankError(
                f"{self.folder}: no entry came from {', '.join(unknown)}; "
                f"its sources are {', '.join(known) or 'none'}"
            )
        return wanted

    # -- values -------------------------------------------------------------------------------

    @property
    def values(self) -> np.ndarray:
        """All values (rows, 32, 96) fp32, decoded: for small banks; else use `gather`."""
        return self.coding.decode(self.records)

    def gather(self, indices: Tensor | np.ndarray) -> Tensor:
        """Values (..., 32, 96) fp32 at indices (...) int; -1 gives zeros."""
        rows = np.asarray(indices)
        if rows.size and int(rows.max()) >= self.rows:
            raise BankError(
                f"{self.folder}: row {int(rows.max())} asked for, the bank has {self.rows}; "
                "the neighbour table was made for another bank"
            )
        if not self.rows:
            return torch.zeros((*rows.shape, self.coding.n_latents, self.coding.d_latents))
        values = torch.from_numpy(self.coding.decode(self.records[np.maximum(rows, 0)]))
        values[torch.from_numpy(rows < 0)] = 0.0
        return values

    # -- looking after it ---------------------------------------------------------------------

    def problems(self) -> Iterator[str]:
        """Read every byte; what does not fit the manifest, one sentence each. None: whole.

        If a writer committed since, it is the bank as it is now that is read.
        """
        yield from damage(self.folder)

    def verify(self) -> None:
        """Read every byte: hashes, counts, dimensions, orphan rows. BankError names the damage."""
        if found := list(self.problems()):
            raise BankError("\n".join(found))

    def info(self) -> dict[str, Any]:
        """The manifest's facts, the sizes on disk and the loss of the coding, for people."""
        facts = asdict(self.manifest)
        for name in ("segments", "compressor"):
            facts.pop(name)
        facts["perceiver_hash"] = facts.pop("compressor_hash")
        sizes = self.manifest.sizes
        files = self.manifest.perceiver_files
        return facts | {
            "count": len(self),
            "removed": len(self.removed),
            "rows": self.rows,
            "segments": len(self.manifest.segments),
            "sources": self.entries.source_counts(self.removed),
            "hash": self.hash,
            "bytes": sum(sizes.values()),
            "perceiver_bytes": sum(size for name, size in sizes.items() if name in files),
            "values_relative_error": self.coding_error.relative,
        }


def _mapped(path: Path, record: np.dtype, rows: int) -> np.ndarray:
    """The first `rows` records of a file. Private: what is written to them stays in memory."""
    if not rows:
        return np.zeros(0, dtype=record)
    return np.memmap(path, dtype=record, mode="c", shape=(rows,))
