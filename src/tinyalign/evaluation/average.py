"""One number for eight benchmarks: their plain mean, each on a scale of 0 to 100."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tinyalign.evaluation.results import Results

AVERAGED: dict[str, tuple[tuple[str, ...], float]] = {
    "gqa": (("accuracy",), 1.0),
    "mmmu": (("accuracy",), 1.0),
    "mm-vet": (("score",), 1.0),
    "pope": (("f1",), 1.0),
    "scienceqa": (("image_accuracy",), 1.0),
    "textvqa": (("accuracy_with_ocr", "accuracy_without_ocr"), 1.0),
    "vqav2": (("accuracy",), 1.0),
    "mme": (("perception",), 2000.0),
}
"""The paper's eight (its Table 1): benchmark to the metric that counts and its full marks.

MME counts by its perception total out of 2000, which is what papers report as "MME"; cognition
(out of 800) is left out. A metric may carry a note in brackets, as MM-Vet's judge.
"""


@dataclass(frozen=True)
class Average:
    """A mean over benchmarks, and what is in it."""

    value: float
    """0 to 100; of no benchmark at all it is 0."""
    parts: dict[str, float]
    """Each benchmark's share of full marks, in percent."""
    missing: tuple[str, ...]
    """Those of the eight without a result: two averages compare only where these are equal."""


def average(results: Iterable[Results]) -> Average:
    """The mean of what there is of the eight; other tasks are left out."""
    parts: dict[str, float] = {}
    for each in results:
        share = share_of_full_marks(each)
        if share is not None:
            parts[each.task] = share
    value = sum(parts.values()) / len(parts) if parts else 0.0
    return Average(value, parts, tuple(name for name in AVERAGED if name not in parts))


def share_of_full_marks(results: Results) -> float | None:
    """A benchmark's number in percent; None for a task that does not count."""
    wanted, full = AVERAGED.get(results.task, ((), 1.0))
    for name, found in results.metrics.items():
        if name.split(" (")[0] in wanted:
            return 100 * found.value / full
    return None
