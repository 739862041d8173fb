"""The samples of each step, dealt out to processes and micro-batches.

Which samples a step has is decided by the order and the batch size alone. How they are split
changes how fast the step is, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyalign.data.collator import IGNORED
from tinyalign.data.packing import Groups, Layout, cost, groups_needed, plan_step

FILLER = -1
"""The slot of an item that only keeps a process busy: nothing in it is supervised."""


class Place(NamedTuple):
    """A sample of a step: its number within the step, and its position in the data set."""

    slot: int
    position: int


@dataclass(frozen=True)
class Split:
    """How a step's samples are shared out."""

    layout: Layout
    batch_size: int
    """Samples a step."""
    accumulation: int = 1
    """Micro-batches of a process."""
    processes: int = 1
    budget: int | None = None
    """Most tokens of a micro-batch."""

    @property
    def groups(self) -> int:
        """Micro-batches of a full step, over all processes."""
        return self.accumulation * self.processes


class SeededOrder(Sampler[int]):
    """Every sample once an epoch, in an order that seed and epoch alone decide."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.size, generator=generator).tolist()


class MicroBatches(Sampler[list[Place]]):
    """The micro-batches of one process, step by step, each a list of places.

    The longest micro-batches of a step come first, and those that processes compute at the same
    time are about equal. The last step of an epoch may have fewer samples and micro-batches;
    processes for which it has no sample get a filler.
    """

    def __init__(
        self, order: SeededOrder, lengths: Sequence[int], split: Split, rank: int = 0
    ) -> None:
        """order: gives positions, anew for each `set_epoch`; lengths: tokens by position."""
        self.order, self.lengths, self.split, self.rank = order, lengths, split, rank

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.order.set_epoch(epoch)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self.lengths) / self.split.batch_size)

    def __len__(self) -> int:
        left = len(self.lengths) - (self.steps - 1) * self.split.batch_size
        return (self.steps - 1) * self.split.accumulation + self._accumulation(left)

    def __iter__(self) -> Iterator[list[Place]]:
        for positions in steps_of(self.order, self.split.batch_size):
            groups = self._groups(positions)
            for group in groups[self.rank :: self.split.processes]:
                yield self._places(group, positions)

    def largest(self, epochs: int) -> tuple[list[Place], int]:
        """What this process computes while one has its most expensive micro-batch; its tokens.

        Looks through all steps of so many epochs.
        """
        best: tuple[int, list[Place]] = (-1, [])
        for epoch in range(epochs):
            self.set_epoch(epoch)
            for positions in steps_of(self.order, self.split.batch_size):
                groups = self._groups(positions)
                tokens = self._cost([positions[i] for i in groups[0]])
                if tokens > best[0]:
                    best = tokens, self._places(groups[self.rank], positions)
        return best[1], best[0]

    def _accumulation(self, samples: int) -> int:
        """Micro-batches a process in a step of so many samples."""
        split = self.split
        if samples == split.batch_size:
            return split.accumulation
        group = 1 if split.budget is not None else math.ceil(split.batch_size / split.groups)
        return min(split.accumulation, math.ceil(samples / (group * split.processes)))

    def _groups(self, positions: list[int]) -> Groups:
        lengths = [self.lengths[position] for position in positions]
        n_groups = self._accumulation(len(positions)) * self.split.processes
        return plan_step(lengths, n_groups, self.split.layout, self.split.budget)

    def _places(self, group: list[int], positions: list[int]) -> list[Place]:
        if not group:
            return [Place(FILLER, positions[0])]
        return [Place(slot, positions[slot]) for slot in group]

    def _cost(self, positions: list[int]) -> int:
        return cost([self.lengths[position] for position in positions], self.split.layout)


def steps_of(order: SeededOrder, batch_size: int) -> Iterator[list[int]]:
    """The positions of each step of an epoch."""
    positions = list(order)
    for start in range(0, len(positions), batch_size):
        yield positions[start : start + batch_size]


def accumulation_for(order: SeededOrder, lengths: Sequence[int], split: Split, epochs: int) -> int:
    """Micro-batches a process that the fullest step of so many epochs needs for its budget."""
    if split.budget is None:
        return split.accumulation
    needed = 1
    for epoch in range(epochs):
        order.set_epoch(epoch)
        for positions in steps_of(order, split.batch_size):
            step = [lengths[position] for position in positions]
            needed = max(needed, groups_needed(step, split.layout, split.budget))
    return math.ceil(needed / split.processes)


class Items(Dataset):
    """The items of a data set by their place; an item gets its `slot`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        item = {**self.dataset[place.position], "slot": place.slot}
        if place.slot == FILLER:
            item["labels"] = [IGNORED] * len(item["labels"])
        return item

    def __getitems__(self, places: list[Place]) -> list[dict[str, Any]]:
        """A micro-batch; what it needs from the disk is asked for at once, not item by item."""
        if hasattr(self.dataset, "will_need"):
            self.dataset.will_need([place.position for place in places])
        return [self[place] for place in places]


class MicroBatchLoader(DataLoader):
    """Loads what a `MicroBatches` names; every process has its own."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)
