"""Images decoded once, in order and in batches: in worker processes, or between two batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tinyalign.data.images import load_image
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError


def in_batches(items: Dataset, rows: Sequence[int], size: int, workers: int) -> Iterable[list[Any]]:
    """The items of `rows` in order, `size` at a time, made by `workers` processes; 0: by this one.

    The batches are the same with any number of workers.
    """
    batches = [list(rows[low : low + size]) for low in range(0, len(rows), size)]
    return DataLoader(
        items, batch_sampler=batches, collate_fn=list, num_workers=workers,
        generator=torch.Generator(),  # drawing from the global one would move the caller's
    )  # fmt: skip


class DecodedImages(Dataset):
    """The images at (sample, number) of a data set, decoded when they are asked for."""

    def __init__(self, samples: Sequence[Sample], places: Sequence[tuple[int, int]]) -> None:
        """places: of each item, the index of its sample and which of the sample's images it is."""
        self.samples, self.places = samples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image | DataError:
        """The image; where it cannot be read the error, so that it comes back from a worker."""
        sample, number = self.places[index]
        try:
            return load_image(self.samples[sample].images[number])
        except DataError as error:
            return error
