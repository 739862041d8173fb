"""Streams: the samples of shards, epoch after epoch, from a position that can be saved.

The shuffle takes `buffer` samples of an epoch off the shards at a time and gives them in an order
that seed and block number alone decide, while it reads the next ones. So a position is where the
block began and how many of it were given: nothing that is in memory has to be saved.
"""

from __future__ import annotations

import tarfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from tinyalign.data.readers.records import Reading
from tinyalign.data.readers.shards.parquet_shard import ParquetShard
from tinyalign.data.readers.shards.shard import (
    TAR_SUFFIXES,
    Record,
    Shard,
    find_shards,
    is_shards,
    shard_names,
    without_query,
)
from tinyalign.data.readers.shards.webdataset import TarShard
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError, DataError, first_few
from tinyalign.hashing import hash_json
from tinyalign.log import logger

TRIES = 3
WAIT = 1.0  # seconds before the second try of a remote shard; doubled before the third
SHUFFLE_BUFFER = 1000


class Stream(Protocol):
    """Samples in a fixed order without end, from a position that can be saved and restored."""

    @property
    def report(self) -> StreamReport:
        """What was left out so far."""

    def __iter__(self) -> Iterator[Sample]:
        """Goes on where the position stands."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the sample given last, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position; raises DataError for one of another stream."""


@dataclass(frozen=True)
class ShardProblem:
    """A shard that could not be read to its end."""

    shard: str
    reason: str
    read: int
    """Records that were read before."""

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.reason}; left after {self.read} records"


@dataclass
class StreamReport:
    """What a stream left out so far; each shard and record is listed once."""

    shards: dict[str, ShardProblem] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    """By shard and place: why a record can't be read as a sample."""

    def left_out(self) -> dict[str, str]:
        """What, and why: shards first."""
        return {name: str(one) for name, one in self.shards.items()} | self.records

    def add(self, other: StreamReport) -> None:
        """Take over what another report lists."""
        self.shards.update(other.shards)
        self.records.update(other.records)


@dataclass(frozen=True)
class Part:
    """Which part of a stream a process reads: the `index`-th of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"part {self.index} of {self.count}: parts count from 0")


@dataclass(frozen=True)
class Cursor:
    """Where reading stands: the next sample to read."""

    epoch: int = 0
    place: int = 0
    """In this epoch's order of this part's shards."""
    at: int = 0
    """Of the record in the shard."""
    done: int = 0
    """Samples of that record that were read."""
    count: int = 0
    """Records of this epoch before it."""


class SampleStream:
    """The samples of shards, shuffled, without end or for some epochs.

    Every epoch has the shards in another order. With `part`, each process reads other shards;
    where their number cannot be shared evenly, each reads all and keeps every `count`-th record.
    So the order is fixed by seed, shuffle buffer and number of parts.

    A shard that cannot be read is left where it breaks off, listed in `report` and warned of
    once; with `strict` it raises DataError. A remote one is tried three times first.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        seed: int = 0,
        buffer: int = SHUFFLE_BUFFER,
        part: Part | None = None,
        epochs: int | None = None,
        strict: bool = False,
    ) -> None:
        """buffer: samples shuffled at a time, of which two blocks are in memory; 0 keeps the
        order of shards and records. epochs: None goes on for ever."""
        if not shards:
            raise DataError("a stream needs at least one shard, found none")
        if buffer < 0:
            raise ConfigError(f"a shuffle buffer holds 0 samples or more, found {buffer}")
        self.shards, self.seed, self.buffer = list(shards), seed, buffer
        self.part = part or Part()
        self.epochs, self.strict = epochs, strict
        self.report = StreamReport()
        self._whole = len(self.shards) % self.part.count == 0
        if not self._whole:
            logger.warning(
                "stream: %d shards for %d processes: each reads all of them; a number of shards "
                "that %d divides would share the reading",
                len(shards), self.part.count, self.part.count,
            )  # fmt: skip
        self._start, self._block, self._given = Cursor(), 0, 0

    # -- the position -------------------------------------------------------------------------

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the order."""
        names = hash_json([shard.name for shard in self.shards])
        parts = [self.part.index, self.part.count]
        return {"shards": names, "seed": self.seed, "buffer": self.buffer, "part": parts}

    def state_dict(self) -> dict[str, Any]:
        """The position after the sample given last, as JSON; a few hundred bytes."""
        position = {"start": asdict(self._start), "block": self._block, "given": self._given}
        return {**self.identity, **position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position; raises DataError, which says what differs, for another stream's."""
        differ = [
            f"{name} {state.get(name)}, here {value}"
            for name, value in self.identity.items()
            if state.get(name) != value
        ]
        if differ:
            raise DataError(
                f"the saved position is of another stream ({'; '.join(differ)}); go on with the "
                "same shards, seed, shuffle buffer and number of processes"
            )
        self._start = Cursor(**state["start"])
        self._block, self._given = state["block"], state["given"]

    # -- the order ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Sample]:
        source, ahead = self.read(self._start), deque[tuple[Sample, Cursor]]()
        while block := self._next_block(source, ahead):
            for given, place in enumerate(self._permutation(len(block)), start=1):
                if len(ahead) < self.buffer:
                    ahead.extend(islice(source, 1))
                if given > self._given:
                    self._given = given
                    yield block[place][0]
            self._start, self._block, self._given = block[-1][1], self._block + 1, 0

    def _next_block(
        self, source: Iterator[tuple[Sample, Cursor]], ahead: deque[tuple[Sample, Cursor]]
    ) -> list[tuple[Sample, Cursor]]:
        """Up to `buffer` samples of one epoch; those that were read ahead come first."""
        block: list[tuple[Sample, Cursor]] = []
        while len(block) < max(1, self.buffer):
            if not ahead:
                ahead.extend(islice(source, 1))
            if not ahead or (block and ahead[0][1].epoch != block[0][1].epoch):
                break
            block.append(ahead.popleft())
        return block

    def _permutation(self, n: int) -> list[int]:
        if not self.buffer:
            return list(range(n))
        return np.random.default_rng([self.seed, 0, self._block]).permutation(n).tolist()

    def _order(self, epoch: int) -> list[int]:
        """This part's shards in an epoch."""
        order = list(range(len(self.shards)))
        if self.buffer:
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(order)).tolist()
        return order[self.part.index :: self.part.count] if self._whole else order

    # -- reading ------------------------------------------------------------------------------

    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[Sample, Cursor]]:
        """Samples in the order of shards and records, each with the cursor behind it.

        Raises DataError when a whole epoch has none.
        """
        cursor = cursor or Cursor()
        while self.epochs is None or cursor.epoch < self.epochs:
            order, found = self._order(cursor.epoch), cursor != Cursor(cursor.epoch)
            while cursor.place < len(order):
                shard, count, skip = self.shards[order[cursor.place]], cursor.count, cursor.done
                for record in self._records(shard, cursor.at):
                    here = replace(cursor, at=record.at, count=count)
                    for done, sample in enumerate(self._samples(shard, record, count), start=1):
                        if done > skip:
                            found = True
                            yield sample, replace(here, done=done)
                    count, skip = count + 1, 0
                cursor = Cursor(cursor.epoch, cursor.place + 1, count=count)
            if not found:
                reasons = first_few(self.report.left_out().values()) or "they are empty"
                raise DataError(f"no sample in any of {len(order)} shards: {reasons}")
            cursor = Cursor(cursor.epoch + 1)

    def _samples(self, shard: Shard, record: Record, count: int) -> list[Sample]:
        """A record's samples; none of another part's, or of one that can't be read."""
        if not self._whole and count % self.part.count != self.part.index:
            return []
        if record.problem is not None:
            self._bad_record(shard, record.at, record.problem)
        return record.samples

    def _records(self, shard: Shard, at: int) -> Iterator[Record]:
        """A shard's records; where it breaks off, that is reported and they end."""
        tries, read, begun = TRIES if shard.remote else 1, 0, False
        while True:
            try:
                for record in shard.records(at):
                    if begun and record.at == at:
                        continue  # had before the connection broke
                    at, begun, read = record.at, True, read + 1
                    yield record
                return
            except MemoryError:
                raise
            except Exception as error:  # readers raise OSError, ArrowInvalid, TarError, zlib.error
                tries -= 1
                if tries and not isinstance(error, (FileNotFoundError, PermissionError)):
                    time.sleep(WAIT * 2 ** (TRIES - 1 - tries))
                    continue
                self._bad_shard(shard, _reason(error), read)
                return

    def _bad_shard(self, shard: Shard, reason: str, read: int) -> None:
        problem = ShardProblem(shard.name, reason, read)
        if self.strict:
            raise DataError(f"{problem}; fetch it again, or leave out strict to go on without")
        if shard.name not in self.report.shards:
            self.report.shards[shard.name] = problem
            logger.warning("data: %s", problem)

    def _bad_record(self, shard: Shard, at: int, problem: DataError) -> None:
        if self.strict:
            raise problem
        name = f"{shard.name}@{at}"
        if name not in self.report.records:
            self.report.records[name] = str(problem)
            logger.warning("data: left out: %s", problem)


def _reason(error: Exception) -> str:
    kind = {
        FileNotFoundError: "nothing is there",
        PermissionError: "it may not be read",
        tarfile.ReadError: "a damaged tar",
    }.get(type(error), type(error).__name__)
    return f"{error}" if isinstance(error, DataError) else f"{kind} ({error})"


# -- from paths -------------------------------------------------------------------------------


def open_shards(
    path: str | Sequence[str], reading: Reading, split: str | None = None
) -> list[Shard]:
    """The tar and parquet shards behind paths, globs, folders and URLs; see `find_shards`."""
    paths = find_shards(path, split)
    names = shard_names(paths)
    source = _source_name(paths)
    shards: list[Shard] = []
    for one, name in zip(paths, names):
        suffix = without_query(one).lower()
        if suffix.endswith(TAR_SUFFIXES):
            shards.append(TarShard(one, name, source, reading, "://" in one))
        elif is_shards(one):
            shards.append(ParquetShard(one, name, source, reading, "://" in one))
        else:
            raise DataError(f"{one}: expected a shard that ends in .tar, .tar.gz or .parquet")
    return shards


def _source_name(paths: Sequence[str]) -> str:
    """What the data set is called: its only file, or the folder of its first shard."""
    parts = without_query(paths[0]).replace("\\", "/").split("/")
    return parts[-1] if len(paths) == 1 or len(parts) < 2 else parts[-2]
