"""Rows of one shape and type in a file that only grows, read through a memory map."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyalign.errors import DataError


class RowFile:
    """Raw rows one after the other. Which of them count is the business of an `ImageIndex`."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """shape: of one row."""
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def write(self, first: int, rows: Sequence[np.ndarray]) -> None:
        """Put rows at `first` and after, on the disk when this returns.

        What a kill left beyond the rows that count is written over. Raises DataError for a row
        of another shape.
        """
        for row in rows:
            if row.shape != self.shape:
                raise DataError(
                    f"{self.path}: expected rows of shape {self.shape}, found {row.shape}; this "
                    "image processor gives sizes that differ, so set data.cache to none"
                )
        self.path.touch()
        with open(self.path, "r+b") as file:
            file.seek(first * self.row_bytes)
            for row in rows:
                file.write(np.ascontiguousarray(row, self.dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def will_need(self, rows: Sequence[int]) -> None:
        """Have the system read these rows from the disk, all at the same time, before they are
        asked for one by one. Does nothing where there is no such call."""
        if not hasattr(os, "posix_fadvise") or not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            for row in rows:
                first = row * self.row_bytes
                os.posix_fadvise(file.fileno(), first, self.row_bytes, os.POSIX_FADV_WILLNEED)

    def map(self) -> np.ndarray:
        """All rows (N, *shape), read-only."""
        count = self.path.stat().st_size // self.row_bytes if self.path.is_file() else 0
        if not count:
            return np.empty((0, *self.shape), self.dtype)
        return np.memmap(self.path, self.dtype, mode="r", shape=(count, *self.shape))
