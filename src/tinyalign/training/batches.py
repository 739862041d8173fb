"""Which samples each process computes in each step: the same ones in all, however many compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler


class StepBatches(Sampler[list[int]]):
    """This process's micro-batches, as positions in the data set.

    A step takes the next `micro * accumulation * processes` samples of the order, whatever the
    three are. The last step of an epoch may have fewer; a process that gets none of them computes
    the step's first sample as `~position`: an item with nothing to learn from, see
    `TrainingDataset`. So every process runs as many micro-batches as any other.
    """

    def __init__(
        self, order: Any, micro: int, accumulation: int = 1, processes: int = 1, index: int = 0
    ) -> None:
        """order: a sampler of positions with a length; micro: samples of a micro-batch."""
        self.sampler = order  # by this name accelerate finds whom to tell the epoch
        self.micro, self.accumulation = micro, accumulation
        self.processes, self.index = processes, index

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.micro * self.accumulation * self.processes)
        return whole * self.accumulation + -(-rest // (self.micro * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        step: list[int] = []
        for position in self.sampler:
            step.append(position)
            if len(step) == self.micro * self.accumulation * self.processes:
                yield from self.share(step)
                step = []
        yield from self.share(step)

    def share(self, step: Sequence[int]) -> Iterator[list[int]]:
        """The micro-batches of this process in a step of these positions."""
        batches = [list(step[i : i + self.micro]) for i in range(0, len(step), self.micro)]
        while len(batches) % self.processes:
            batches.append([~step[0]])
        yield from batches[self.index :: self.processes]


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
