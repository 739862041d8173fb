"""A benchmark to ask a model: which questions, under which protocol, and how answers score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError, first_few
from tinyalign.evaluation.benchmarks.answers import Missing
from tinyalign.evaluation.benchmarks.base import Benchmark, BenchmarkSamples, Questions, with_images
from tinyalign.evaluation.benchmarks.protocols import Protocol
from tinyalign.evaluation.benchmarks.scoring import (
    asked_by,
    read_questions,
    score_predictions,
    settings,
)
from tinyalign.evaluation.results import Prediction, Skipped
from tinyalign.evaluation.tasks import Scored


@dataclass(frozen=True)
class Asking:
    """A benchmark, ready to be asked; `evaluation.running.runner.evaluate` takes its parts."""

    benchmark: Benchmark
    questions: Questions
    protocol: Protocol
    missing: Missing = "error"
    """Questions that cannot be asked, such as one whose image cannot be read: "error" refuses to
    score, "wrong" counts them as wrong."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def samples(self) -> BenchmarkSamples:
        """What a model is asked."""
        return self.benchmark.samples(self.questions, self.protocol)

    def score(self, predictions: Sequence[Prediction]) -> Scored:
        """What the model said, judged by the benchmark's rule; every question counts."""
        scored, counts = score_predictions(
            self.benchmark,
            self.questions,
            predictions,
            self.protocol,
            missing=self.missing,
            seed=self.seed,
        )
        return replace(scored, settings=settings(self.benchmark, self.questions, counts))

    def for_runner(self) -> dict[str, Any]:
        """Arguments of `evaluate`; `max_new_tokens` may be overridden."""
        return {
            "task": self.benchmark.name,
            "scorer": self.score,
            "protocol": asked_by(self.benchmark, self.protocol),
            "max_new_tokens": self.protocol.max_new_tokens,
        }

    def check_readable(self, unreadable: Sequence[Skipped]) -> None:
        """Raise EvaluationError now, not after hours, for images that cannot be read."""
        if unreadable and self.missing == "error":
            raise EvaluationError(
                f"{len(unreadable)} of {len(self.questions)} questions of {self.benchmark.title} "
                f"cannot be asked: {first_few((s.reason for s in unreadable), 2)}. Name the "
                "folder of images with --images, or count these questions as wrong with "
                "--missing wrong."
            )


def prepare(
    benchmark: Benchmark,
    source: str | Path,
    protocol: Protocol,
    *,
    images: str | Path | None = None,
    limit: int | None = None,
    missing: Missing = "error",
    seed: int = 0,
) -> Asking:
    """Read a benchmark's files for asking: its questions with an image, the first `limit` of them.

    Raises EvaluationError for files that are not the benchmark's or hold no images, and for
    anything that scoring will need and is not there.
    """
    benchmark.ready()
    questions = with_images(read_questions(benchmark, source, images))
    if limit is not None:
        questions = benchmark.first(questions, limit)
    if not len(questions) or not questions.images(0):
        raise EvaluationError(
            f"{source}: no question with an image to ask about; expected {benchmark.files}."
        )
    return Asking(benchmark, questions, protocol, missing, seed)
