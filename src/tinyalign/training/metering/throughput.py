"""What steps computed and how long they took: rates, padding, waiting for data, MFU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinyalign.training.machine.process_ram import in_use
from tinyalign.training.metering.flops import ModelFlops
from tinyalign.training.metering.work import Work

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
