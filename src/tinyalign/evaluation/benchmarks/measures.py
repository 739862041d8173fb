"""Intervals of the measures that several benchmarks share, from one row of numbers a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tinyalign.evaluation.benchmarks.base import Question
from tinyalign.evaluation.metrics.intervals import Floats, Interval, interval, per_item


def safe_ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, and 0 where the whole is 0 (a resample may leave a small group out)."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def mean(
    scores: Sequence[float],
    questions: Sequence[Question],
    seed: int,
) -> Interval:
    """Mean score with its interval over images."""
    images = [question.image_id for question in questions]
    return interval(per_item(scores), images=images, seed=seed)


def means_by_group(
    scores: Sequence[float],
    questions: Sequence[Question],
    seed: int,
    name: str = "accuracy",
    group: Callable[[Question], str] = lambda question: question.group,
) -> dict[str, Interval]:
    """`{"GROUP/name": mean}` for every group, in order of first appearance."""
    rows: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        if group(question):
            rows.setdefault(group(question), []).append(index)
    return {
        f"{key}/{name}": mean([scores[i] for i in those], [questions[i] for i in those], seed)
        for key, those in rows.items()
    }
