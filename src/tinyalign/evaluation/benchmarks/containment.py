"""Containment: an offline proxy over MM-Vet's files, for watching a model while it learns.

It looks for the parts of the true answer in the model's words. It is not MM-Vet, does not use its
name, and cannot be compared with MM-Vet scores: a right answer in other words gets nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinyalign.evaluation.benchmarks.base import Benchmark, Judged, Question
from tinyalign.evaluation.benchmarks.measures import mean
from tinyalign.evaluation.benchmarks.mmvet import MmVet
from tinyalign.evaluation.benchmarks.protocols import Protocol
from tinyalign.evaluation.metrics.vqa import normalise_answer


def containment(truth: str, text: str) -> float:
    """Share of the parts joined by <AND> that occur in `text`; of a part's <OR>s one is enough."""
    said = f" {normalise_answer(text)} "
    parts = [part for part in re.split(r"<AND>", truth) if part.strip()]
    found = [any(_occurs(form, said) for form in part.split("<OR>")) for part in parts]
    return sum(found) / len(found) if found else 0.0


def _occurs(form: str, said: str) -> bool:
    words = normalise_answer(form)
    return bool(words) and f" {words} " in said


class Containment(MmVet):
    """The mean share of true parts that answers contain, whole words only."""

    name = "containment"
    title = "AND/OR containment (offline proxy)"
    files = "the questions file mm-vet.json, and images/"
    rule = "share of the <AND> parts of the truth found word by word in the answer; no judge"

    def submission(self, texts: Mapping[str, str]) -> dict[str, str]:
        """There is no judge of this proxy to submit to."""
        return Benchmark.submission(self, texts)

    def settings(self) -> dict[str, Any]:
        """None: nobody grades."""
        return {}

    def ready(self) -> None:
        """Nothing is needed: this is the offline proxy."""
        return None

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`containment` in [0, 1]."""
        scores = [containment(q.references[0], text) for q, text in zip(questions, texts)]
        return Judged(
            [{"containment": s} for s in scores], {"containment": mean(scores, questions, seed)}
        )
