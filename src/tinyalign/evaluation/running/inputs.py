"""Samples -> what the model reads: usable images, token ids, features, memories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tinyalign.data.chat import Encoded, encode
from tinyalign.data.collator import IGNORED
from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError
from tinyalign.evaluation.results import Skipped
from tinyalign.hashing import hash_bytes
from tinyalign.memory.building.builder import FeatureRows
from tinyalign.memory.search.retriever import Exclusion
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.protocols import MemoryBatch, MemoryRetriever


@dataclass(frozen=True)
class Item:
    """A sample that can be judged."""

    index: int
    sample: Sample
    image_id: str
    references: tuple[str, ...]
    prompt: Encoded
    """What the model is asked: everything before the closing answer."""
    full: Encoded
    """The whole conversation, with labels; nothing is supervised where there is no answer."""
    image: Image.Image | None
    """None where cached features make it superfluous."""


def image_id(sample: Sample) -> str:
    """What samples about the same image share: the hash of its encoded bytes, or its path."""
    if not sample.images:
        return sample.id
    ref = sample.images[0]
    return ref.name if ref.data is None else hash_bytes(ref.data)


def references(sample: Sample) -> tuple[str, ...]:
    """What a prediction is judged by: the sample's references, or else its own answer."""
    return sample.judged_by


@dataclass(frozen=True)
class Batch:
    """Samples read together: those that can be judged, and why the others cannot, by index."""

    items: list[Item]
    skipped: dict[int, Skipped]


class ItemReader:
    """Reads samples in batches; those that cannot be judged come with the reason.

    Conversations become ids exactly as in training: through `data.chat.encode`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Any,
        n_memory_tokens: int,
        *,
        decode: bool,
        strict: bool,
        show_image: bool = True,
    ) -> None:
        """`decode` images. `strict`: raise DataError for what cannot be judged instead.

        Without `show_image` prompts hold the text alone, and a sample without any text starts
        as texts do, with the tokenizer's BOS. Images are decoded all the same, so that the
        samples that can be judged are the same ones.
        """
        self.samples = samples
        self.processor = processor
        self.n_memory_tokens = n_memory_tokens if show_image else 0
        self.decode = decode
        self.strict = strict
        self.show_image = show_image

    def batches(self, size: int, indices: Sequence[int] | None = None) -> Iterator[Batch]:
        """`size` samples at a time, of those at `indices` (by default all)."""
        indices = range(len(self.samples)) if indices is None else indices
        for start in range(0, len(indices), size):
            skipped: dict[int, Skipped] = {}
            read = [self._item_or_skip(i, skipped) for i in indices[start : start + size]]
            yield Batch([item for item in read if item is not None], skipped)

    def _item_or_skip(self, index: int, skipped: dict[int, Skipped]) -> Item | None:
        sample = self.samples[index]
        try:
            return self._item(index, sample)
        except DataError as error:
            if self.strict:
                raise
            skipped[index] = Skipped(sample.id, str(error))
            return None

    def _item(self, index: int, sample: Sample) -> Item:
        if len(sample.images) != 1:
            raise DataError(
                f"sample {sample.id!r}: expected one image, found {len(sample.images)}; these "
                "tasks ask about one image at a time"
            )
        judged_by = references(sample)
        if not judged_by:
            raise DataError(f"sample {sample.id!r}: no reference and no answer to be judged by")
        prompt = self.encoded(sample, ask=True)
        if any(message.role == "assistant" for message in sample.messages):
            full = self.encoded(sample, ask=False)
        else:
            full = Encoded(prompt.input_ids, [IGNORED] * len(prompt.input_ids))
        image = load_image(sample.images[0]) if self.decode else None
        return Item(index, sample, image_id(sample), judged_by, prompt, full, image)

    def encoded(self, sample: Sample, ask: bool) -> Encoded:
        """Token ids and labels; with `ask` the prompt alone, ready to be answered."""
        processor = self.processor
        encoded = encode(
            sample if self.show_image else replace(sample, images=()),
            processor.tokenizer,
            processor.chat_template,
            n_image_tokens=processor.image_seq_length,
            n_memory_tokens=self.n_memory_tokens,
            image_token=processor.image_token,
            memory_token=processor.memory_token,
            add_generation_prompt=ask,
        )
        return encoded if self.show_image else _opened(encoded, processor.tokenizer)


def _opened(encoded: Encoded, tokenizer: Any) -> Encoded:
    """With a first token, from which the model can go on: BOS, or EOS where there is none."""
    if encoded.input_ids and encoded.labels[0] == IGNORED:
        return encoded
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return Encoded([first, *encoded.input_ids], [IGNORED, *encoded.labels])


def vision_features(
    items: Sequence[Item], vision: VisionEncoder, cache: FeatureRows | None
) -> Tensor:
    """X_V before the connector: (B, n, D), from the cache or from the tower."""
    if cache is None:
        return vision.encode([item.image for item in items if item.image is not None])
    rows = [torch.as_tensor(cache[item.index]) for item in items]
    return torch.stack(rows).to(vision.device)


def retrieve(
    items: Sequence[Item], features: Tensor, retriever: MemoryRetriever, processor: Any
) -> MemoryBatch:
    """E_R of a batch, by image and instruction; never an entry with the sample's id or image."""
    instructions = [item.sample.instruction for item in items]
    perceiver = getattr(retriever, "perceiver", None)
    to_ids = processor.query_tokenizer if perceiver is None else perceiver.query_ids
    exclude = [
        Exclusion((item.sample.id,), () if item.image is None else (pixel_hash(item.image),))
        for item in items
    ]
    return retriever.retrieve(features, to_ids(instructions) if to_ids else None, exclude)
