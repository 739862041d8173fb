"""From samples to entries: images decoded in workers, encoder and Perceiver run in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tinyalign.data.decoding import in_batches
from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.perceiver import Perceiver

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder


class FeatureRows(Protocol):
    """Features computed already: `features[i]` is (n, D) of sample i."""

    def __getitem__(self, index: int, /) -> Any:
        """Features (n, D) of sample `index`, as a tensor or an array."""


class EntrySink(Protocol):
    """Where finished entries go: a bank that is built, or one that is changed."""

    def append(self, keys: Tensor, values: Tensor, entries: Sequence[Entry]) -> None:
        """Add keys (B, d_k), values (B, 32, 96) and their B entries."""

    def skip(self, sample_id: str, reason: str) -> None:
        """Note a sample that is left out."""


@dataclass
class Prepared:
    """A sample with its decoded image, ready for the encoder."""

    sample: Sample
    image: Image.Image
    image_hash: str
    features: Any = None
    """The encoder's output (n, D), where it is known already."""


@dataclass
class UnusableSample:
    """A sample that cannot be remembered, and why."""

    sample_id: str
    reason: str


class Batches(Dataset):
    """Batches of decoded samples; an item is one sample, made in a worker process or here."""

    def __init__(
        self,
        samples: Sequence[Sample],
        rows: range,
        size: int,
        repeated: Set[int] = frozenset(),
        workers: int = 0,
        features: FeatureRows | None = None,
        there: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """there: samples (by index) that the bank has already, by their id."""
        self.samples, self.rows, self.size, self.there = samples, rows, size, there
        self.repeated, self.workers, self.features = repeated, workers, features

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Prepared | UnusableSample:
        sample = self.samples[index]
        try:
            if index in self.repeated:
                raise DataError(f"sample {sample.id}: its id came before; ids must be unique")
            if index in self.there:
                raise DataError(f"sample {sample.id}: in the bank already; update it instead")
            one = prepared(sample)
        except DataError as error:
            return UnusableSample(sample.id, str(error))
        if self.features is not None:
            one.features = torch.as_tensor(self.features[index]).float()
        return one

    def starting_at(self, position: int) -> Iterable[list[Prepared | UnusableSample]]:
        """The batches of its rows, from the `position`-th row on."""
        return in_batches(self, self.rows[position:], self.size, self.workers)


def prepared(sample: Sample) -> Prepared:
    """Decode a sample's last image. DataError where there is none, or it cannot be read."""
    if not sample.images:
        raise DataError(f"sample {sample.id}: no image; a memory is an image and a text")
    image = load_image(sample.images[-1])
    return Prepared(sample, image, pixel_hash(image))


def encode(batch: Sequence[Prepared], vision: VisionEncoder) -> Tensor:
    """Features (B, n, D) of a batch, as they are known already, or each picture encoded once."""
    if all(one.features is not None for one in batch):
        return torch.stack([one.features for one in batch])
    pictures = {one.image_hash: one.image for one in batch}
    place = {name: index for index, name in enumerate(pictures)}
    encoded = vision.encode(list(pictures.values()))
    return encoded[[place[one.image_hash] for one in batch]]


class EntryMaker:
    """Turns decoded samples into keys and values, and hands them to a writer."""

    def __init__(self, vision: VisionEncoder, perceiver: Perceiver, strict: bool = False) -> None:
        """strict: a sample that cannot be remembered stops everything."""
        self.vision, self.perceiver, self.strict = vision, perceiver, strict

    def store(self, batch: Sequence[Prepared | UnusableSample], writer: EntrySink) -> None:
        """Append a batch; those that cannot be remembered go on the writer's list."""
        good = []
        for one in batch:
            if isinstance(one, UnusableSample):
                self._leave_out(writer, one.sample_id, one.reason)
            else:
                good.append(one)
        if good:
            self._append(good, writer)

    def _leave_out(self, writer: EntrySink, name: str, reason: str) -> None:
        if self.strict:
            raise DataError(reason)
        writer.skip(name, reason)

    def _append(self, batch: list[Prepared], writer: EntrySink) -> None:
        images = [one.image for one in batch]
        encoded = encode(batch, self.vision)
        texts = [one.sample.text for one in batch]
        instructions = [one.sample.instruction for one in batch]
        keys = self.perceiver.entry_keys(encoded, instructions, texts).cpu()
        values = self.perceiver.values(encoded, texts, images).cpu()
        fine = keys.isfinite().all(dim=1) & values.half().isfinite().flatten(1).all(dim=1)
        for one, kept in zip(batch, fine.tolist()):
            if not kept:
                name = one.sample.id
                reason = f"sample {name}: its features or latents overflow; check its image"
                self._leave_out(writer, name, reason)
        entries = [_entry(one) for one, kept in zip(batch, fine.tolist()) if kept]
        writer.append(keys[fine], values[fine], entries)


def _entry(one: Prepared) -> Entry:
    sample = one.sample
    return Entry(
        id=sample.id,
        text=sample.text,
        image_ref=sample.images[-1].path or "",
        image_hash=one.image_hash,
        source=sample.source,
        instruction=sample.instruction,
    )
