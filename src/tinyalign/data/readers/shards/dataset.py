"""Shards with random access: an index of their records, made by reading the texts once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.readers.shards.shard import Record, Shard
from tinyalign.data.readers.shards.stream import SampleStream
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError


class ShardDataset(LazySamples):
    """Samples of tar or parquet shards by number, in the order of shards and records.

    One after the other they are read in one pass; out of order each one opens its shard and goes
    to its place. A shard that breaks off is left there and listed in `report`; with `strict` it
    raises DataError, as a record does that cannot be read.
    """

    def __init__(self, shards: Sequence[Shard], *, strict: bool = False) -> None:
        self._shards = list(shards)
        texts: list[Any] = [replace(shard, text_only=True) for shard in shards]  # type: ignore[type-var]
        stream = SampleStream(texts, buffer=0, epochs=1, strict=strict)
        self._places = [(one.place, one.at, one.done - 1) for _, one in stream.read()]
        self.report = stream.report
        self._open: tuple[int, int, Iterator[Record]] | None = None
        self._last: tuple[int, Record] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_last": None}

    def __len__(self) -> int:
        return len(self._places)

    def left_out(self) -> dict[str, str]:
        """Shards that break off and records that cannot be read, and why."""
        return self.report.left_out()

    def sample_at(self, index: int) -> Sample:
        """Sample `index`; raises DataError if its shard changed since, or went away."""
        place, at, part = self._places[index]
        if self._last is None or self._last[0] != place or self._last[1].at != at:
            self._last = (place, self._record(place, at))
        samples = self._last[1].samples
        if part >= len(samples):
            raise DataError(f"{self._shards[place].name}: changed since it was opened; open again")
        return samples[part]

    def _record(self, place: int, at: int) -> Record:
        """The record at `at`: the next of the shard read last, or else looked up."""
        record = self._next_record(place)
        return record if record is not None and record.at == at else self._looked_up(place, at)

    def _next_record(self, place: int) -> Record | None:
        """The record that comes next in a shard, if it was read last and goes on."""
        if self._open is None or self._open[:2] != (os.getpid(), place):
            return None
        try:
            return next(self._open[2], None)
        except MemoryError:
            raise
        except Exception:  # the shard breaks off behind its listed records
            self._open = None
            return None

    def _looked_up(self, place: int, at: int) -> Record:
        shard = self._shards[place]
        records = shard.records(at)
        try:
            record = next(records)
        except MemoryError:
            raise
        except Exception as error:  # StopIteration too
            reason = str(error) or "it ends before this record"
            raise DataError(
                f"shard {shard.name}: can't be read any more: expected the record at {at}, which "
                f"was there when the data set was opened, found: {reason}; fetch the shard again "
                "or put it back, and start again, or take it out of the list of shards"
            ) from error
        # With the process: one that was forked must not move its parent's file.
        self._open = (os.getpid(), place, records)
        return record
