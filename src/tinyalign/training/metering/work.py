"""What a step computes, counted: samples, tokens, places, images, and its seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tinyalign.data.collator import IMAGE_KEYS


@dataclass
class Work:
    """What one or more steps computed, over all processes, and how long they took."""

    steps: int = 0
    samples: int = 0
    supervised_tokens: int = 0
    tokens: int = 0
    """Image, memory and text tokens; padding is none."""
    slots: int = 0
    """Places computed: the tokens and the padding."""
    images: int = 0
    seconds: float = 0.0
    """From asking for the batch to the end of the step; no evaluation, no checkpoint."""
    waited: float = 0.0
    """Of these, until the batch was there."""

    def __add__(self, other: Work) -> Work:
        names = [field.name for field in fields(self)]
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def padding(self) -> float:
        """Share of the places that are padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    @property
    def supervised(self) -> float:
        """Share of the tokens that a loss is taken on."""
        return self.supervised_tokens / max(1, self.tokens)

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / max(self.seconds, 1e-9)

    def rate(self, count: float) -> float:
        """So much a second."""
        return count / max(self.seconds, 1e-9)


def work_of(batches: Iterable[Mapping[str, Any]]) -> Work:
    """Samples, tokens, places and images of batches, padded or packed.

    `index` has one row a sample. One with nothing to learn from, which only fills a process's
    share, is not counted. Where `attention_mask` is absent, every place but `n_padding` is a
    token.
    """
    work = Work()
    for batch in batches:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        learned = batch.get("n_supervised")
        samples = len(batch.get("index", ids))
        work.samples += samples if learned is None else int((learned > 0).sum())
        work.slots += ids.numel()
        tokens = ids.numel() - batch.get("n_padding", 0) if mask is None else int(mask.sum())
        work.tokens += tokens
        work.images += sum(len(batch[name]) for name in IMAGE_KEYS if name in batch)
    return work
