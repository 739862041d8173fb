"""Two models on the same samples: paired differences from their prediction files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.results import Prediction
from tinyalign.evaluation.statistics import Floats, Interval, paired_difference, per_item

LOSS = "loss"

Run = Sequence[Prediction]


def compare(
    a: Sequence[Run], b: Sequence[Run], metric: str = LOSS, *, relative: bool = False, seed: int = 0
) -> Interval:
    """How far `metric` of `a` lies above that of `b`, with its 95 % interval over images.

    Args:
        a, b: one run for each training seed (a list of one where there is but one). All runs
            must hold the same samples, in any order.
        metric: "loss" (per supervised token), or a per-sample score such as "cider", "accuracy".
        relative: as a fraction of `b`: -0.05 says a is 5 % below b.
    """
    runs = [*a, *b]
    if not a or not b or not runs[0]:
        raise EvaluationError("A comparison needs at least one run with predictions on each side.")
    ids = [prediction.id for prediction in runs[0]]
    by_id = [{prediction.id: prediction for prediction in run} for run in runs]
    for number, run in enumerate(by_id):
        if run.keys() != by_id[0].keys():
            odd = sorted(run.keys() ^ by_id[0].keys())
            raise EvaluationError(
                f"Run {number} does not judge the same samples as run 0: {len(odd)} are in one "
                f"only, such as {odd[0]!r}. Evaluate both on the same data."
            )
    kept = [i for i in ids if all(_has(run[i], metric) for run in by_id)]
    if not kept:
        raise EvaluationError(
            f"No sample has {metric!r} in every run; the first run has {_known(runs[0][0])}."
        )
    stacked = [_statistics([run[i] for i in kept], metric) for run in by_id]
    images = [by_id[0][i].image_id for i in kept]
    left, right = np.stack(stacked[: len(a)]), np.stack(stacked[len(a) :])
    return paired_difference(left, right, images=images, relative=relative, seed=seed)


def _has(prediction: Prediction, metric: str) -> bool:
    return prediction.supervised_tokens > 0 if metric == LOSS else metric in prediction.scores


def _known(prediction: Prediction) -> str:
    return ", ".join([LOSS, *prediction.scores])


def _statistics(predictions: Run, metric: str) -> Floats:
    """(n, 2): loss and tokens, or score and 1."""
    if metric == LOSS:
        return np.array([[p.loss_sum, p.supervised_tokens] for p in predictions], dtype=np.float64)
    return per_item([p.scores[metric] for p in predictions])
