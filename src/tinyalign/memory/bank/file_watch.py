"""Seeing that a file was replaced, by looking at its name and without reading it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


class Watch:
    """Tells whether a file was replaced since.

    Keeps the file mapped: as long as it is, no new file can get its inode number. So two commits
    within one tick of the file system's clock do not look like none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, ...] = ()
        try:
            with open(path, "rb") as file:
                self._stamp = _stamp(os.fstat(file.fileno()))
                if os.name != "nt":  # where a mapped file cannot be replaced
                    self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return  # gone, or empty: whoever reads it says so

    def changed(self) -> bool:
        """Whether another file has its name. A name that is gone is no change."""
        try:
            return _stamp(os.stat(self.path)) != self._stamp
        except OSError:
            return False


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
