"""The entries of a bank (who, what, where from) in one SQLite file, read on demand."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tinyalign.errors import BankError

CHUNK = 500  # SQLite takes a limited number of variables in one statement


@dataclass(frozen=True)
class Entry:
    """What a bank remembers about a pair besides its key and value."""

    id: str
    """Id of the sample; unique in a bank."""
    text: str
    """The text in the value: instruction and answer."""
    image_ref: str
    """Where the image was: a path, or the name of its record."""
    image_hash: str
    """Hash of the decoded pixels; several entries may share an image."""
    source: str
    """Data set the pair came from."""
    instruction: str
    """The text in the key."""


COLUMNS = ", ".join(f.name for f in fields(Entry))
SCHEMA = f"""
CREATE TABLE entries ({COLUMNS.replace(", ", " TEXT NOT NULL, ")} TEXT NOT NULL,
                      row INTEGER PRIMARY KEY);
CREATE UNIQUE INDEX by_id ON entries (id);
CREATE INDEX by_image_hash ON entries (image_hash);
"""


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Write a new file with the entries as rows 0, 1, 2, …; the same entries give the same bytes.

    The file is written without a journal: it counts only once a manifest names it.
    """
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")  # the caller syncs the finished file
        connection.execute("BEGIN")
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.executemany(
            f"INSERT INTO entries ({COLUMNS}, row) VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((*astuple(entry), row) for row, entry in enumerate(entries)),
        )
        connection.execute("COMMIT")
    finally:
        connection.close()


class Entries:
    """Read access by row, id or image hash; safe across threads and forked workers."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened until the first question is asked."""
        self.path = path
        self._local = threading.local()

    def _query(self, sql: str, values: Sequence[object] = ()) -> list[tuple]:
        try:
            return self._connection().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise BankError(
                f"{self.path}: damaged ({error}); restore it from a copy or build the bank again"
            ) from error

    def _connection(self) -> sqlite3.Connection:
        if getattr(self._local, "process", None) != os.getpid():
            uri = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            self._local.connection = sqlite3.connect(uri, uri=True)
            self._local.process = os.getpid()
        return self._local.connection

    def __len__(self) -> int:
        return self._query("SELECT count(*) FROM entries")[0][0]

    def column(self, name: str) -> list[str]:
        """One field of every entry, in order of row."""
        if name not in COLUMNS.split(", "):
            raise KeyError(name)
        return [value for (value,) in self._query(f"SELECT {name} FROM entries ORDER BY row")]

    def at(self, rows: Iterable[int]) -> dict[int, Entry]:
        """The entries at these rows."""
        found: dict[int, Entry] = {}
        for chunk in _chunks(sorted(set(rows))):
            marks = ", ".join("?" * len(chunk))
            sql = f"SELECT row, {COLUMNS} FROM entries WHERE row IN ({marks})"
            found.update((row, Entry(*values)) for row, *values in self._query(sql, chunk))
        return found

    def rows_with(self, column: str, values: Iterable[str]) -> list[int]:
        """Rows whose id or image hash (`column`) is one of `values`, in order."""
        found: list[int] = []
        for chunk in _chunks(sorted(set(values))):
            marks = ", ".join("?" * len(chunk))
            sql = f"SELECT row FROM entries WHERE {column} IN ({marks})"
            found.extend(row for (row,) in self._query(sql, chunk))
        return sorted(found)


def _chunks(values: Sequence) -> Iterable[Sequence]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
