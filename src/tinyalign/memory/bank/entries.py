"""The entries of a bank (who, what, where from): immutable SQLite files, read on demand.

Every commit adds one file, a segment: the entries it added, the rows it removed, and a record of
itself. A file is written whole, then never touched again, so it can be hashed, read from a
read-only folder or a network drive, and shared by any number of readers without a lock. Commits
merge the newest segments while these are no larger than what is added, so that a bank of N
entries has about log2(N) of them.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from tinyalign.errors import BankError
from tinyalign.memory.bank.files import cannot_read

CHUNK = 500  # SQLite takes a limited number of variables in one statement
COPY_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Entry:
    """What a bank remembers about a pair besides its key and value."""

    id: str
    """Id of the sample; unique among the entries that were not removed."""
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

    @property
    def answer(self) -> str:
        """Its text without the instruction: what it says of its image."""
        return self.text.removeprefix(self.instruction).strip()


@dataclass(frozen=True)
class Commit:
    """One change of a bank."""

    number: int
    """1 for the build, then counting up."""
    added: int
    """Entries it added."""
    removed: int
    """Entries it removed."""
    note: str
    """What it was, in a few words."""


FIELDS = tuple(f.name for f in fields(Entry))
COLUMNS = ", ".join(FIELDS)
SCHEMA = f"""
CREATE TABLE entries ({COLUMNS.replace(", ", " TEXT NOT NULL, ")} TEXT NOT NULL,
                      row INTEGER PRIMARY KEY);
CREATE TABLE removed (row INTEGER PRIMARY KEY);
CREATE TABLE commits (number INTEGER PRIMARY KEY, added INTEGER, removed INTEGER, note TEXT);
CREATE INDEX by_id ON entries (id);
CREATE INDEX by_image_hash ON entries (image_hash);
"""
INSERT = f"INSERT INTO entries ({COLUMNS}, row) VALUES (?, ?, ?, ?, ?, ?, ?)"


def write_segment(
    path: Path,
    entries: Iterable[tuple[int, Entry]],
    removed: Iterable[int],
    commits: Iterable[Commit],
) -> None:
    """Write a new segment: entries by row, removed rows, commits. Same input, same bytes.

    The file is written without a journal: it counts only once a manifest names it.
    """
    path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA page_size = 4096")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")  # the caller syncs the finished file
            connection.execute("BEGIN")
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            added = ((*astuple(entry), row) for row, entry in entries)
            connection.executemany(INSERT, added)
            connection.executemany("INSERT INTO removed VALUES (?)", ((int(r),) for r in removed))
            connection.executemany("INSERT INTO commits VALUES (?, ?, ?, ?)", map(astuple, commits))
            connection.execute("COMMIT")
    except sqlite3.OperationalError as error:  # "database or disk is full"
        raise OSError(f"{path}: {error}") from error


class Segment:
    """Read access to one segment; any thread, and forked workers too."""

    def __init__(self, path: Path) -> None:
        """Open the file now, so that it can be read even after a later commit replaced it."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._close = weakref.finalize(self, os.close, self._file)
            self._connection = _connected(path)
        except PermissionError as error:
            raise cannot_read(path, error) from error
        except (OSError, sqlite3.Error) as error:
            raise BankError(
                f"{path}: cannot be opened ({error}). If a later commit replaced it, "
                "refresh() the bank; if not, restore the file from a copy"
            ) from error
        self._process = os.getpid()

    def _connect(self) -> sqlite3.Connection:
        """The connection of this process: SQLite's must not cross a fork."""
        if self._process != os.getpid():
            self._connection = self._connected_again()
            self._process = os.getpid()
        return self._connection

    def _connected_again(self) -> sqlite3.Connection:
        """A connection to the file as it was opened, which a commit may have replaced since."""
        if self.path.exists() and os.path.samestat(os.stat(self.path), os.fstat(self._file)):
            return _connected(self.path)
        with tempfile.NamedTemporaryFile(suffix=".sqlite") as copy:
            while block := os.pread(self._file, COPY_BLOCK, copy.tell()):
                copy.write(block)  # pread: the parent shares this file's reading position
            copy.flush()
            return _connected(Path(copy.name))

    def query(self, sql: str, values: Sequence[object] = ()) -> list[tuple]:
        """The rows of a SELECT. BankError for a damaged file."""
        try:
            return self._connect().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise BankError(
                f"{self.path}: damaged ({error}); restore it from a copy or build the bank again"
            ) from error

    def entries(self) -> Iterable[tuple[int, Entry]]:
        """All entries with their rows, in order of row."""
        for row, *values in self.query(f"SELECT row, {COLUMNS} FROM entries ORDER BY row"):
            yield row, Entry(*values)

    def rows(self) -> list[int]:
        """The rows that have an entry, in order."""
        return [row for (row,) in self.query("SELECT row FROM entries ORDER BY row")]

    def removed(self) -> list[int]:
        """The rows removed by its commits, in order."""
        return [row for (row,) in self.query("SELECT row FROM removed ORDER BY row")]

    def contents(self) -> list[int]:
        """A hash of each entry, in order of row; equal in this process for equal entries."""
        return list(map(hash, self.query(f"SELECT {COLUMNS} FROM entries ORDER BY row")))

    def commits(self) -> list[Commit]:
        """The commits it holds, in order."""
        sql = "SELECT number, added, removed, note FROM commits ORDER BY number"
        return [Commit(*values) for values in self.query(sql)]


class Entries:
    """The segments of a bank as one: look-ups by row, id, image hash or source.

    Look-ups see removed rows too; `removed` says which these are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open all segments; nothing is read until the first question is asked."""
        self.segments = [Segment(path) for path in paths]

    def column(self, name: str) -> list[str]:
        """One field of every entry, in order of row."""
        if name not in FIELDS:
            raise KeyError(name)
        sql = f"SELECT {name} FROM entries ORDER BY row"
        return [value for segment in self.segments for (value,) in segment.query(sql)]

    def at(self, rows: Iterable[int]) -> dict[int, Entry]:
        """The entries at these rows."""
        found: dict[int, Entry] = {}
        for chunk in _chunks(sorted({int(row) for row in rows})):
            marks = ", ".join("?" * len(chunk))
            sql = f"SELECT row, {COLUMNS} FROM entries WHERE row IN ({marks})"
            for segment in self.segments:
                found.update((row, Entry(*values)) for row, *values in segment.query(sql, chunk))
                if len(found) == len(chunk):
                    break
        return found

    def rows_with(self, column: str, values: Iterable[str]) -> list[int]:
        """Rows whose id, image hash or source (`column`) is one of `values`, in order."""
        if column not in FIELDS:
            raise KeyError(column)
        found: list[int] = []
        for chunk in _chunks(sorted(set(values))):
            marks = ", ".join("?" * len(chunk))
            sql = f"SELECT row FROM entries WHERE {column} IN ({marks})"
            for segment in self.segments:
                found.extend(row for (row,) in segment.query(sql, chunk))
        return sorted(found)

    def sources(self) -> list[str]:
        """The data sets that entries came from, sorted; removed entries count too."""
        sql = "SELECT DISTINCT source FROM entries"
        return sorted({value for segment in self.segments for (value,) in segment.query(sql)})

    def source_counts(self, removed: Iterable[int] = ()) -> dict[str, int]:
        """How many entries came from each data set, by name; `removed` rows do not count."""
        sql = "SELECT source, COUNT(*) FROM entries GROUP BY source"
        counts = Counter[str]()
        for segment in self.segments:
            counts.update(dict(segment.query(sql)))
        counts.subtract(entry.source for entry in self.at(removed).values())
        return {name: counts[name] for name in sorted(counts) if counts[name] > 0}

    def removed(self) -> np.ndarray:
        """Rows that were removed (int64, sorted)."""
        rows = [row for segment in self.segments for row in segment.removed()]
        return np.unique(np.asarray(rows, dtype=np.int64))

    def contents(self) -> np.ndarray:
        """A hash (int64) of each entry by row, to tell which are also in another bank."""
        found = [one for segment in self.segments for one in segment.contents()]
        return np.asarray(found, dtype=np.int64)

    def commits(self) -> list[Commit]:
        """Every commit, oldest first."""
        return [commit for segment in self.segments for commit in segment.commits()]


def _connected(path: Path) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def _chunks(values: Sequence) -> Iterable[Sequence]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
