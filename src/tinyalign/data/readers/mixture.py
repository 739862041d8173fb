"""Several streams as one, each with its share of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tinyalign.data.readers.shards.stream import Stream, StreamReport
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError, DataError

DRAWS = 1024  # made at a time


class MixtureStream:
    """Each sample comes from a stream drawn by weight; seed and number of the draw decide which.

    The streams go on for ever, so a small one comes round more often.
    """

    def __init__(self, streams: Sequence[Stream], weights: Sequence[float], seed: int = 0) -> None:
        """weights: the shares, which need not add up to 1. Raises ConfigError if one is not
        above 0, or if there are not as many as streams."""
        if len(streams) != len(weights) or not streams:
            raise ConfigError(f"a mixture of {len(streams)} streams has {len(weights)} weights")
        if not all(weight > 0 for weight in weights):
            raise ConfigError(f"a mixture's weights must be above 0, found {list(weights)}")
        self.streams, self.seed = list(streams), seed
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._given = 0

    @property
    def report(self) -> StreamReport:
        """What all of them left out."""
        report = StreamReport()
        for stream in self.streams:
            report.add(stream.report)
        return report

    def state_dict(self) -> dict[str, Any]:
        """The position after the sample given last, as JSON."""
        return {
            "seed": self.seed,
            "shares": self.shares.tolist(),
            "given": self._given,
            "streams": [stream.state_dict() for stream in self.streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position; raises DataError for one of another mixture."""
        wanted = [self.seed, self.shares.tolist()]
        if [state.get("seed"), state.get("shares")] != wanted:
            raise DataError(
                f"the saved position is of another mixture (seed {state.get('seed')}, shares "
                f"{state.get('shares')}; here {wanted[0]}, {wanted[1]}); go on with the same one"
            )
        self._given = state["given"]
        for stream, part in zip(self.streams, state["streams"]):
            stream.load_state_dict(part)

    def __iter__(self) -> Iterator[Sample]:
        sources = [iter(stream) for stream in self.streams]
        draws: list[int] = []
        while True:
            block, place = divmod(self._given, DRAWS)
            if place == 0 or not draws:
                draws = self._draws(block)
            sample = next(sources[draws[place]], None)
            if sample is None:
                return
            self._given += 1
            yield sample

    def _draws(self, block: int) -> list[int]:
        rng = np.random.default_rng([self.seed, 2, block])
        return rng.choice(len(self.streams), size=DRAWS, p=self.shares).tolist()
