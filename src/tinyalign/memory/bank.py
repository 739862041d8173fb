"""The memory bank M (METHOD section 2): one folder, opened by memory map, checked on opening."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import BankError
from tinyalign.hashing import hash_file
from tinyalign.memory.entries import Entries, Entry
from tinyalign.memory.manifest import Manifest

KEYS, VALUES, ENTRIES = "keys.f32", "values.f16", "entries.sqlite"
COMPRESSOR = "compressor"


class MemoryBank:
    """A committed bank: keys K_m (N, d_k) fp32, values E_R (N, 32, 96) fp16, and its entries.

    The folder holds manifest.json, keys.f32, values.f16, entries.sqlite, and in compressor/
    the Perceiver, tokenizer and key function that made it, so that it can be queried with
    nothing else at hand.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use `MemoryBank.open`."""
        self.folder = folder
        self.manifest = manifest
        self.entries = Entries(folder / ENTRIES)
        m = manifest
        self.keys = _mapped(folder / KEYS, "<f4", (m.count, m.key_dim))
        self.values = _mapped(folder / VALUES, "<f2", (m.count, m.n_latents, m.d_latents))

    @classmethod
    def open(cls, folder: str | Path) -> MemoryBank:
        """Map a bank's files. Takes milliseconds whatever its size; file hashes are not read.

        Raises BankError naming the file that is missing, damaged, of the wrong size, or from a
        newer format. `verify` checks the content too.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        for name in (KEYS, VALUES, ENTRIES):
            _check_size(folder / name, manifest.files.get(name, {}).get("bytes"))
        return cls(folder, manifest)

    def __reduce__(self) -> tuple:
        return MemoryBank.open, (self.folder,)  # workers map the files instead of copying them

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def hash(self) -> str:
        """The bank's identity; changes with any byte of its content."""
        return self.manifest.hash

    @property
    def compressor_folder(self) -> Path:
        """Where the Perceiver, its tokenizer and the key function lie."""
        return self.folder / COMPRESSOR

    @cached_property
    def ids(self) -> list[str]:
        """Sample ids by row."""
        return self.entries.column("id")

    @cached_property
    def texts(self) -> list[str]:
        """Value texts by row."""
        return self.entries.column("text")

    @cached_property
    def image_hashes(self) -> list[str]:
        """Hashes of the decoded images by row."""
        return self.entries.column("image_hash")

    @cached_property
    def sources(self) -> list[str]:
        """Data sets by row."""
        return self.entries.column("source")

    def entry(self, row: int) -> Entry:
        """The entry at a row. Raises IndexError outside 0..N-1."""
        try:
            return self.entries.at([row])[row]
        except KeyError:
            raise IndexError(f"row {row} of a bank with {len(self)} entries") from None

    def rows_of(self, ids: Iterable[str] = (), image_hashes: Iterable[str] = ()) -> list[int]:
        """Rows whose id or whose image is among these: what a query must not get, sorted."""
        by_id = self.entries.rows_with("id", ids)
        return sorted({*by_id, *self.entries.rows_with("image_hash", image_hashes)})

    def gather(self, indices: Tensor | np.ndarray) -> Tensor:
        """Values (..., 32, 96) fp32 at indices (...) int; -1 gives zeros."""
        rows = np.asarray(indices)
        if rows.size and int(rows.max()) >= len(self):
            raise BankError(
                f"{self.folder}: row {int(rows.max())} asked for, the bank has {len(self)}; "
                "the neighbour table was made for another bank"
            )
        shape = (*rows.shape, *self.values.shape[1:])
        if not len(self):
            return torch.zeros(shape)
        values = torch.from_numpy(self.values[np.maximum(rows, 0)].astype(np.float32))
        values[torch.from_numpy(rows < 0)] = 0.0
        return values

    def verify(self) -> None:
        """Read every byte: file hashes and the number of entries. BankError names the damage."""
        for name, expected in self.manifest.files.items():
            path = self.folder / name
            _check_size(path, expected["bytes"])
            if hash_file(path) != expected["hash"]:
                raise BankError(
                    f"{path}: its content changed since it was committed; "
                    "restore it from a copy or build the bank again"
                )
        if len(self.entries) != len(self):
            raise BankError(
                f"{self.folder / ENTRIES}: {len(self.entries)} entries, "
                f"the manifest says {len(self)}"
            )

    def info(self) -> dict[str, Any]:
        """The manifest's facts and the size on disk, for people."""
        facts = asdict(self.manifest)
        files = facts.pop("files")
        return facts | {"hash": self.hash, "bytes": sum(f["bytes"] for f in files.values())}


def _check_size(path: Path, expected: int | None) -> None:
    if expected is None:
        raise BankError(f"{path}: the manifest does not mention it; the bank is not complete")
    if not path.is_file():
        raise BankError(f"{path}: missing; restore it from a copy or build the bank again")
    found = path.stat().st_size
    if found != expected:
        raise BankError(
            f"{path}: expected {expected} bytes, found {found}; it was truncated or changed. "
            "Restore it from a copy or build the bank again"
        )


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if path.stat().st_size != expected:
        raise BankError(
            f"{path}: expected {expected} bytes for {shape}, found {path.stat().st_size}; "
            "the manifest's dimensions do not fit the file"
        )
    if not expected:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="c", shape=shape)  # private: writes stay in memory
