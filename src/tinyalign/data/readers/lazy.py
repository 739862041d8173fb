"""A sequence of samples that are made when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import overload

from tinyalign.data.sample import Sample
from tinyalign.errors import DataError


class LazySamples(Sequence[Sample], ABC):
    """Indexing, slices and negative indices over `sample_at`. A slice is a list."""

    @abstractmethod
    def sample_at(self, index: int) -> Sample:
        """Sample `index`, which is in 0 ... len - 1."""

    def left_out(self) -> dict[str, str]:
        """What of the data is not among the samples, and why: shards that break off, records."""
        return {}

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.sample_at(i) for i in range(len(self))[index]]
        return self.sample_at(range(len(self))[index])


class Head(LazySamples):
    """The first `limit` samples of another data set."""

    def __init__(self, dataset: Sequence[Sample], limit: int) -> None:
        if limit < 0:
            raise DataError(f"limit: expected 0 or more samples, found {limit}")
        self._dataset, self._length = dataset, min(limit, len(dataset))

    def __len__(self) -> int:
        return self._length

    def sample_at(self, index: int) -> Sample:
        """As in the data set it is the head of."""
        return self._dataset[index]

    def left_out(self) -> dict[str, str]:
        """Of the whole data set that it is the head of."""
        return self._dataset.left_out() if isinstance(self._dataset, LazySamples) else {}
