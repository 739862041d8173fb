"""Times training steps from outside: any loop that asks for batches can be watched."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any


class Enough(BaseException):
    """Every step has been timed: the loop that is watched may end here."""


@dataclass
class Step:
    """One optimiser step, and the batches that it computed."""

    asked: float
    """When the loop asked for the step's batches, in seconds."""
    given: float = 0.0
    """When it had them."""
    samples: int = 0
    supervised: int = 0
    """Tokens that are learned from."""
    tokens: int = 0
    """Tokens that belong to a sample."""
    computed: int = 0
    """Tokens that were computed, padding included."""


class StepClock:
    """Call `ask` before a step's batches are fetched and `give` after; `ask` raises Enough at the
    end. The first `warmup` steps are run but not timed; peak memory is that of the timed ones."""

    def __init__(self, warmup: int, steps: int) -> None:
        from tinyalign.analysis.peak_ram import PeakMemory

        self.warmup, self.timed = warmup, steps
        self.steps: list[Step] = []
        self.peak = PeakMemory()
        self.started = time.perf_counter()

    def ask(self) -> None:
        """A step begins, and the one before ends."""
        _finish_device()
        now = time.perf_counter()
        if len(self.steps) == self.warmup:
            self.peak.__enter__()
        if len(self.steps) == self.warmup + self.timed:
            self.peak.__exit__(None, None, None)
            self.end = now
            raise Enough
        self.steps.append(Step(now))

    def give(self, samples: int, supervised: int, tokens: int, computed: int) -> None:
        """The step's batches are there."""
        step = self.steps[-1]
        step.given = time.perf_counter()
        step.samples, step.supervised = samples, supervised
        step.tokens, step.computed = tokens, computed

    def summary(self) -> dict[str, Any]:
        """Rates and shares over the timed steps, and each of these steps."""
        timed = self.steps[self.warmup :]
        ends = [step.asked for step in timed[1:]] + [self.end]
        seconds = self.end - timed[0].asked
        total = {
            name: sum(getattr(step, name) for step in timed)
            for name in ("samples", "supervised", "tokens", "computed")
        }
        return {
            "samples_per_s": total["samples"] / seconds,
            "supervised_per_s": total["supervised"] / seconds,
            "tokens_per_sample": total["tokens"] / total["samples"],
            "padding": 1 - total["tokens"] / total["computed"],
            "data_wait": sum(step.given - step.asked for step in timed) / seconds,
            "peak_gb": self.peak.gigabytes,
            "first_step_after_s": self.steps[0].asked - self.started,
            "warmup_s": timed[0].asked - self.steps[0].asked,
            "step_s": [round(end - step.asked, 4) for step, end in zip(timed, ends)],
            "steps": [asdict(step) for step in timed],
        }


def _finish_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
