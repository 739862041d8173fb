"""What each task measures, from the predictions alone: no model is needed to score again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.caption_tokens import caption_tokens
from tinyalign.evaluation.metrics.captions import (
    DocumentFrequencies,
    bleu,
    bleu_statistics,
    cider_scores,
)
from tinyalign.evaluation.metrics.intervals import Interval, interval, per_item
from tinyalign.evaluation.metrics.vqa import vqa_accuracy
from tinyalign.evaluation.results import Prediction

Task = Literal["caption", "vqa", "easy_vqa"]
TASKS: tuple[str, ...] = get_args(Task)

MAX_NEW_TOKENS = {"caption": 40, "vqa": 16, "easy_vqa": 8}
"""Enough for the answers of each task; a longer generation is cut."""


@dataclass(frozen=True)
class Scored:
    """Predictions with their own scores filled in, and the metrics of the whole."""

    predictions: list[Prediction]
    metrics: dict[str, Interval]
    settings: dict[str, Any] = field(default_factory=dict)
    """What else must be said with the numbers, such as answers that could not be read."""


def check_task(task: str) -> None:
    """Raise EvaluationError for a task that does not exist, naming those that do."""
    if task not in TASKS:
        raise EvaluationError(f"No task {task!r}; there are {', '.join(TASKS)}.")


def score(
    task: str,
    predictions: Sequence[Prediction],
    *,
    generated: bool = True,
    reference_set: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
) -> Scored:
    """Score predictions: held-out `loss`, then `cider` and `bleu4`, or `accuracy`.

    Args:
        generated: False when there is only a loss to report.
        reference_set: for captions, one list of references for every image of the split, from
            which CIDEr's document frequencies are counted; by default the judged images'.
    """
    check_task(task)
    if not predictions:
        raise EvaluationError("No prediction to score: every sample was skipped, or none given.")
    scored = Scored(list(predictions), loss_metrics(predictions, seed))
    if generated and task == "caption":
        return _add(scored, _captions(predictions, reference_set, seed))
    if generated:
        return _add(scored, _answers(predictions, seed))
    return scored


def loss_metrics(predictions: Sequence[Prediction], seed: int = 0) -> dict[str, Interval]:
    """`{"loss": ...}` in nats per supervised token; empty where no sample has an answer.

    The sum of the loss over the sum of the tokens, so a long answer weighs as in training.
    """
    kept = [p for p in predictions if p.supervised_tokens]
    if not kept:
        return {}
    sums = [[p.loss_sum, p.supervised_tokens] for p in kept]
    return {"loss": interval(sums, images=[p.image_id for p in kept], seed=seed)}


def one_per_question(predictions: Sequence[Prediction]) -> list[int]:
    """Where each (image, instruction) comes first: one question is scored once."""
    first: dict[tuple[str, str], int] = {}
    for index, prediction in enumerate(predictions):
        first.setdefault((prediction.image_id, prediction.instruction), index)
    return list(first.values())


def _add(scored: Scored, more: Scored) -> Scored:
    return Scored(more.predictions, {**scored.metrics, **more.metrics})


def _captions(
    predictions: Sequence[Prediction],
    reference_set: Sequence[Sequence[str]] | None,
    seed: int,
) -> Scored:
    kept = one_per_question(predictions)
    candidates = [caption_tokens(predictions[i].prediction) for i in kept]
    references = [[caption_tokens(r) for r in predictions[i].references] for i in kept]
    frequencies = None
    if reference_set is not None:
        frequencies = DocumentFrequencies(
            [caption_tokens(r) for r in those] for those in reference_set
        )
    cider = cider_scores(candidates, references, frequencies)
    images = [predictions[i].image_id for i in kept]
    metrics = {
        "cider": interval(per_item(cider), images=images, seed=seed),
        "bleu4": interval(
            bleu_statistics(candidates, references), statistic=bleu, images=images, seed=seed
        ),
    }
    scored = list(predictions)
    for index, value in zip(kept, cider):
        scored[index] = replace(scored[index], scores={"cider": float(value)})
    return Scored(scored, metrics)


def _answers(predictions: Sequence[Prediction], seed: int) -> Scored:
    accuracies = [vqa_accuracy(p.prediction, p.references) for p in predictions]
    images = [p.image_id for p in predictions]
    metrics = {"accuracy": interval(per_item(accuracies), images=images, seed=seed)}
    scored = [replace(p, scores={"accuracy": a}) for p, a in zip(predictions, accuracies)]
    return Scored(scored, metrics)
