"""What steps computed and how long they took: rates, padding, waiting for data, MFU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from tinyalign.data.collator import IMAGE_KEYS
from tinyalign.training.machine.process_ram import in_use
from tinyalign.training.metering.flops import ModelFlops

MEASURES = (
    "tokens_per_second",
    "samples_per_second",
    "supervised",
    "padding",
    "data_wait",
    "memory_gb",
    "mfu",
)
"""What `Meter` says of a step, in the order of metrics.jsonl; `mfu` where the peak is known."""


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


class Meter:
    """Times the steps of a stage: `fetching` around the data, `add` the work, `step` at its end."""

    def __init__(
        self,
        device: torch.device | None = None,
        flops: ModelFlops | None = None,
        peak: float | None = None,
    ) -> None:
        """flops: arithmetic of the model; peak: FLOP/s of all devices together, None if unknown."""
        self.device = device or torch.device("cpu")
        self.flops, self.peak = flops, peak
        self._step, self._window = Work(), Work()
        self._began = time.perf_counter()

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Around the wait for a step's batches, with which the step begins."""
        self._began = time.perf_counter()
        yield
        self._step = Work(waited=time.perf_counter() - self._began)

    def add(self, work: Work) -> None:
        """Count what the step computes."""
        self._step += work

    def step(self) -> dict[str, float]:
        """End the step; returns its measures."""
        done = self._step + Work(steps=1, seconds=time.perf_counter() - self._began)
        self._step = Work()
        self._window += done
        return self.measures(done)

    def window(self) -> Work:
        """All steps since the last call."""
        done, self._window = self._window, Work()
        return done

    def measures(self, work: Work) -> dict[str, float]:
        """`MEASURES` of some work, rounded."""
        values = {
            "tokens_per_second": round(work.rate(work.tokens), 1),
            "samples_per_second": round(work.rate(work.samples), 2),
            "supervised": round(work.supervised, 4),
            "padding": round(work.padding, 4),
            "data_wait": round(work.data_wait, 4),
            "memory_gb": round(in_use(self.device) / 1e9, 3),
        }
        if self.flops is not None and self.peak is not None:
            values["mfu"] = round(work.rate(self.flops.of(work)) / self.peak, 4)
        return values
