"""Which images are known, by content: one SQLite file beside the features it numbers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError
from tinyalign.hashing import hash_bytes

SCHEMA = """
CREATE TABLE IF NOT EXISTS images (row INTEGER PRIMARY KEY, image_hash TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS refs (ref TEXT PRIMARY KEY, row INTEGER NOT NULL);
"""
CHUNK = 500  # SQLite takes a limited number of variables in one statement


class ImageIndex:
    """Rows by the hash of the decoded image, and by what the image was read from.

    The second is why a second run decodes nothing. Several processes may add at the same time.
    """

    def __init__(self, folder: Path) -> None:
        """The file is `folder`/index.sqlite; it is made when something is first added."""
        self.path = folder / "index.sqlite"

    def rows_of_refs(self, refs: Iterable[str]) -> dict[str, int]:
        """Rows of those references that are known."""
        with self._open() as index:
            return _select(index, "SELECT ref, row FROM refs", "ref", list(dict.fromkeys(refs)))

    def rows_of_hashes(self, hashes: Iterable[str]) -> dict[str, int]:
        """Rows of those image hashes that are known."""
        with self._open() as index:
            return self._of_hashes(index, hashes)

    def hashes(self, rows: Sequence[int]) -> list[str]:
        """Hash of the decoded image at each row; "" for row -1."""
        wanted = sorted({row for row in rows if row >= 0})
        with self._open() as index:
            by_row = _select(index, "SELECT row, image_hash FROM images", "row", wanted)
        return [by_row.get(row, "") for row in rows]

    def add(
        self,
        refs: Sequence[str],
        hashes: Sequence[str],
        store: Callable[[int, list[str]], None] = lambda first, new: None,
    ) -> None:
        """Add images by reference and hash; those with a new hash get the next rows.

        store(first row, new hashes): puts what belongs to the new rows on the disk; nobody else
        can add in between, and the rows count only after it returns.
        """
        with self._open(write=True) as index:
            rows = self._of_hashes(index, hashes)
            new = [name for name in dict.fromkeys(hashes) if name not in rows]
            first = index.execute("SELECT count(*) FROM images").fetchone()[0]
            store(first, new)
            for offset, name in enumerate(new):
                rows[name] = first + offset
                index.execute("INSERT INTO images VALUES (?, ?)", (first + offset, name))
            pairs = [(ref, rows[name]) for ref, name in zip(refs, hashes)]
            index.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?)", pairs)

    @staticmethod
    def _of_hashes(index: sqlite3.Connection, hashes: Iterable[str]) -> dict[str, int]:
        wanted = list(dict.fromkeys(hashes))
        return _select(index, "SELECT image_hash, row FROM images", "image_hash", wanted)

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=600, isolation_level=None)
        try:
            connection.executescript(SCHEMA)
            if write:
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            if write:
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: damaged ({error}); remove the folder {self.path.parent}, it will "
                "be made again"
            ) from error
        finally:
            connection.close()


def reference(image: ImageRef) -> str:
    """What an image is known by before it is decoded: its bytes, or its file's path and times."""
    if image.data is not None:
        return hash_bytes(image.data)
    path = Path(image.name).resolve()
    try:
        facts = path.stat()
    except OSError:
        return f"missing|{path}"
    return f"{path}|{facts.st_size}|{facts.st_mtime_ns}"


def _select(
    index: sqlite3.Connection, sql: str, column: str, values: Sequence[Any]
) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        marks = ", ".join("?" * len(part))
        found.update(index.execute(f"{sql} WHERE {column} IN ({marks})", part).fetchall())
    return found
