"""Shards: files of many samples, on a disk or at a URL, read from front to back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from tinyalign.data.readers.splits import files_of_split
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = (*TAR_SUFFIXES, *PARQUET_SUFFIXES)
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
LISTED = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Record:
    """One record of a shard: an image with one or several texts."""

    at: int
    """Where it begins: `Shard.records(at)` gives it first."""
    samples: list[Sample]
    problem: DataError | None = None
    """Why it has no samples, where it can't be read as one."""


class Shard(Protocol):
    """A file of records that is read in order, from any record on."""

    @property
    def name(self) -> str:
        """What it is called in ids, reports and saved positions; data may move, so no folder."""

    @property
    def remote(self) -> bool:
        """Whether reading it may fail for a moment."""

    def records(self, at: int = 0) -> Iterator[Record]:
        """Records from the one that begins at `at`; any exception means the rest can't be read."""


@dataclass(frozen=True)
class SequenceShard:
    """A data set with random access as one shard; a record's place is its index."""

    samples: Sequence[Sample]
    name: str
    remote: bool = False

    def records(self, at: int = 0) -> Iterator[Record]:
        """Samples from index `at` on, one a record."""
        for index in range(at, len(self.samples)):
            try:
                yield Record(index, [self.samples[index]])
            except DataError as error:
                yield Record(index, [], error)


def is_shards(path: Any) -> bool:
    """Whether a path, or the first of several, ends as tar and parquet shards do."""
    first = path if isinstance(path, str) else next(iter(path), "")
    return without_query(str(first)).lower().endswith(SUFFIXES)


def without_query(path: str) -> str:
    """A URL without what follows `?` or `#`; other paths as they are."""
    return re.split(r"[?#]", path)[0] if "://" in path else path


def find_shards(path: str | Sequence[str], split: str | None = None) -> list[str]:
    """The shards behind paths, globs, folders and URLs; `{00..12}` and `{a,b}` are written out.

    Each path's shards are in order of name; of a folder's shards that are named for splits, only
    those of `split`, if it is given, are taken. A path without wildcard is taken as it is: if
    nothing is there, reading it says so. Raises DataError for a glob or folder without shards.
    """
    paths = [path] if isinstance(path, str) else [str(one) for one in path]
    found = [shard for one in paths for shape in _braces(one) for shard in _behind(shape, split)]
    if not found:
        raise DataError("expected at least one shard, found an empty list of paths")
    return found


def _braces(path: str) -> Iterator[str]:
    if match := RANGE.search(path):
        low, high = match.groups()
        width = len(low) if low.startswith("0") else 0
        choices = [str(n).zfill(width) for n in range(int(low), int(high) + 1)]
        if not choices:
            raise DataError(f"{path}: expected a range that rises, found {match.group()}")
    elif match := LISTED.search(path):
        choices = match.group(1).split(",")
    else:
        yield path
        return
    for choice in choices:
        yield from _braces(path[: match.start()] + choice + path[match.end() :])


def _behind(path: str, split: str | None) -> list[str]:
    """One path -> shards; `?` in a URL begins its query and is no wildcard."""
    wild = any(c in path for c in ("*[" if "://" in path else "*?["))
    if not wild and is_shards(path):
        return [path]
    files = _filesystem(path)
    pattern = path if wild else path.rstrip("/") + "/**"
    try:
        names = sorted(n for n in files.glob(pattern) if n.lower().endswith(SUFFIXES))
    except (OSError, NotImplementedError) as error:
        raise DataError(f"{path}: can't be listed ({error}); name the shards") from error
    if not names:
        raise DataError(f"{path}: expected shards ending in one of {SUFFIXES}, found none there")
    if not wild and split is not None:
        names = files_of_split(path, names, split)
    return [files.unstrip_protocol(name) if "://" in path else name for name in names]


def _filesystem(path: str) -> Any:
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:
        raise cannot_open(path, error) from error


def cannot_open(path: str, error: Exception) -> DataError:
    """A URL of a kind that nothing installed can read."""
    return DataError(f"{path}: this kind of URL can't be read ({error})")


def open_shard(path: str) -> IO[bytes]:
    """Open a local file or an fsspec URL for reading; `.gz` is unpacked on the way.

    Raises DataError for a URL of an unknown kind, OSError where nothing can be read.
    """
    import fsspec

    bare = without_query(path).lower()
    packed = "gzip" if bare.endswith((".gz", ".tgz")) else None
    try:
        return fsspec.open(path, "rb", compression=packed).open()
    except (ImportError, ValueError) as error:
        raise cannot_open(path, error) from error


def shard_names(paths: Sequence[str]) -> list[str]:
    """A name for each shard: what sets it apart from the others, without the folders they share.

    Raises DataError for a shard given twice.
    """
    parts = [re.split(r"[/\\]", without_query(path)) for path in paths]
    shared = 0
    shortest = min(len(part) for part in parts)
    while shared < shortest - 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    names = ["/".join(part[shared:]) for part in parts]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"the shard {twice[0]} is listed more than once; list it once")
    return names
