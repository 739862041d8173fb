"""Which held-out samples each process judges; `micro_batches` has those of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler


class EvaluationBatches(Sampler[list[int]]):
    """This process's batches of a data set, in order; the last may be one that others have too.

    Every process runs as many as any other, as parts that are shared between processes need.
    """

    def __init__(self, size: int, batch: int, processes: int = 1, index: int = 0) -> None:
        """size: of the data set; batch: samples at once."""
        self.batches = [
            list(range(start, min(start + batch, size))) for start in range(0, size, batch)
        ]
        self.processes, self.index = processes, index

    def __len__(self) -> int:
        return -(-len(self.batches) // self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            number = turn * self.processes + self.index
            yield self.batches[min(number, len(self.batches) - 1)]

    def joined(self, found: Sequence[Sequence[Any]]) -> list[Any]:
        """Every process's results, one a batch, in the order of all batches."""
        numbers = range(len(self.batches))
        return [found[n % self.processes][n // self.processes] for n in numbers]
