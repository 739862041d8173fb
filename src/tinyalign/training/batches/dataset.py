"""Samples as training items: ids and labels, cached features, and values gathered from the bank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinyalign.data.chat import Encoded
from tinyalign.data.images import load_image
from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError, first_few
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.search.neighbours import NeighbourTable
from tinyalign.model.processing import TinyAlignProcessor
from tinyalign.training.caches.features import CachedFeatures, Features
from tinyalign.training.caches.pixels import CachedPixels
from tinyalign.training.caches.tokenise import Tokeniser
from tinyalign.training.caches.tokens import CachedTokens


@dataclass(frozen=True)
class Neighbours:
    """Where an item's memories come from: the first k columns of a table, out of a bank."""

    bank: MemoryBank
    table: NeighbourTable
    k: int

    def item(self, index: int) -> dict[str, Tensor]:
        """memory_values (k, 32, 96) float32, memory_mask (k,) bool, memory_scores (k,) float32."""
        rows = self.table.indices[index, : self.k]
        return {
            "memory_values": self.bank.gather(rows),
            "memory_mask": rows >= 0,
            "memory_scores": self.table.scores[index, : self.k],
        }


class TrainingDataset(Dataset):
    """Items for `data.collator.Collator`: what the model's forward takes, and the `index`.

    Image features, or pixels, and token ids come from their caches; where none is kept they are
    made on the way. A sample that turns out unusable is replaced by the next one, listed in
    `skipped` and warned of once; with `strict` it raises DataError. Processes that load data
    share no memory: what each leaves out goes to `skip_file`, which `left_out` reads back.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: TinyAlignProcessor,
        *,
        n_memory_tokens: int = 0,
        template: str | None = None,
        max_length: int | None = None,
        features: Features | None = None,
        tokens: CachedTokens | None = None,
        neighbours: Neighbours | None = None,
        strict: bool = False,
        skip_file: Path | None = None,
    ) -> None:
        """features, tokens and neighbours are row by row those of `samples`; template: what
        `choose_template` returned, by default the processor's own."""
        if features is not None and len(features) != len(samples):
            raise DataError(f"{len(features)} rows of features for {len(samples)} samples")
        if tokens is not None and len(tokens) != len(samples):
            raise DataError(f"{len(tokens)} rows of tokens for {len(samples)} samples")
        if neighbours is not None and len(neighbours.table) != len(samples):
            raise DataError(f"{len(neighbours.table)} rows of neighbours, {len(samples)} samples")
        self.samples = samples
        self.processor = processor
        self.tokenise = Tokeniser.of(
            processor, template=template, n_memory_tokens=n_memory_tokens, max_length=max_length
        )
        self.features = features
        self.tokens = tokens
        self.neighbours = neighbours
        self.strict = strict
        self.skip_file = skip_file
        self.indices = list(range(len(samples))) if features is None else features.usable()
        self.skipped: dict[str, str] = dict(features.skipped) if features is not None else {}
        if not self.indices:
            raise DataError(f"none of {len(samples)} samples has a usable image")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        for step in range(len(self)):
            index = self.indices[(position + step) % len(self)]
            try:
                return self.item(index)
            except DataError as error:
                if self.strict:
                    raise
                self.leave_out(self.samples[index].id, str(error))
        reasons = first_few(self.skipped.values())
        raise DataError(f"none of {len(self)} samples could be used: {reasons}")

    def will_need(self, positions: Sequence[int]) -> None:
        """These items are asked for next: what is cached of their images is read from the disk."""
        if self.features is not None:
            self.features.will_need([self.indices[position] for position in positions])

    def item(self, index: int) -> dict[str, Any]:
        """The item of sample `index`; raises DataError when it cannot be used."""
        encoded = self._encoded(index)
        item: dict[str, Any] = {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "index": index,
        }
        has_image = self._has_image(index)
        if has_image:
            item |= self._images(index)
        if self.neighbours is not None:
            item |= self.neighbours.item(index)
            if not has_image:  # nothing to look memories up by, and no placeholders for them
                item["memory_mask"] = torch.zeros_like(item["memory_mask"])
        return item

    def _encoded(self, index: int) -> Encoded:
        return self.tokenise(self.samples[index]) if self.tokens is None else self.tokens[index]

    def _has_image(self, index: int) -> bool:
        """Without reading the sample where that can be: a row of parquet brings its images."""
        return bool(
            self.samples[index].images if self.features is None else self.features.rows[index]
        )

    def _images(self, index: int) -> dict[str, Any]:
        if isinstance(self.features, CachedFeatures):
            return {"vision_features": list(self.features.images(index))}
        if isinstance(self.features, CachedPixels):
            return {"pixel_values": self.features.pixels(index)}
        images = [load_image(image) for image in self.samples[index].images]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")
        return {"pixel_values": list(pixels["pixel_values"])}

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the item at each position, (len(self),) int64, placeholders counted.

        Where a sample cannot be used, those of the one that takes its place.
        """
        own = np.array([self._length(index) for index in self.indices], np.int64)
        usable = np.flatnonzero(own)
        if not len(usable):
            raise DataError(f"none of {len(self)} samples could be used")
        following = np.searchsorted(usable, np.arange(len(own))) % len(usable)
        return own[usable[following]]

    def _length(self, index: int) -> int:
        if self.tokens is not None:
            return int(self.tokens.lengths[index])
        try:
            return len(self._encoded(index).input_ids)
        except DataError:
            return 0

    def leave_out(self, name: str, reason: str) -> None:
        """Note a sample that cannot be used, and why; warned of once."""
        if name in self.skipped:
            return
        self.skipped[name] = reason
        logger.warning("data: left out: %s", reason)
        if self.skip_file is not None:
            with open(self.skip_file, "a", encoding="utf-8") as file:
                file.write(json.dumps([name, reason]) + "\n")

    def left_out(self) -> dict[str, str]:
        """What was left out so far, by this process or another, and why.

        Shards that break off and records that cannot be read first, by name and place; then
        samples by id.
        """
        samples = self.samples
        unread = samples.left_out() if isinstance(samples, LazySamples) else {}
        found = {**unread, **self.skipped}
        if self.skip_file is None or not self.skip_file.is_file():
            return found
        lines = self.skip_file.read_text(encoding="utf-8").splitlines()
        return {**found, **dict(json.loads(line) for line in lines)}
