"""Two models on the same samples: paired differences from their prediction files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.intervals import (
    Floats,
    Interval,
    interval,
    mcnemar,
    paired_difference,
    paired_test,
    per_item,
)
from tinyalign.evaluation.results import Prediction, Results
from tinyalign.settings import differences

LOSS = "loss"
RESAMPLES = 10_000  # so that a p of 0.0002 can be told from one of 0.001
FLIPS = 20

Run = Sequence[Prediction]
Pair = tuple[Prediction, Prediction]


@dataclass(frozen=True)
class Flip:
    """A sample on which the two runs differ."""

    a: Prediction
    b: Prediction
    difference: float
    """The metric of a minus that of b; of the loss, per token."""


@dataclass(frozen=True)
class CategoryDifference:
    """The comparison within one category of samples."""

    category: str
    n: int
    images: int
    a: float
    b: float
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """One metric of two runs on the same samples."""

    metric: str
    n: int
    images: int
    a: Interval
    b: Interval
    difference: Interval
    """a - b, with images resampled for both at once."""
    p_bootstrap: float
    """Two-sided, over images."""
    p_mcnemar: float | None
    """Exact, over samples; None where the metric is not 0 or 1 on every sample."""
    only_a_higher: int
    only_b_higher: int
    """Samples on which a, or b, has the higher value; the others are equal."""
    categories: list[CategoryDifference]
    flips: list[Flip]
    """The largest differences, largest first."""

    @property
    def p(self) -> float:
        """The p to go by: McNemar's where every sample has an image of its own, else the other.

        Questions about one image are not independent, and McNemar's p is too small for them
        (`benchmarks/intervals.py`).
        """
        alone = self.images == self.n
        return self.p_mcnemar if alone and self.p_mcnemar is not None else self.p_bootstrap

    @property
    def p_line(self) -> str:
        """Both tests in a sentence, the one to go by first."""
        bootstrap = f"paired bootstrap over images: p = {self.p_bootstrap:.2g}"
        if self.p_mcnemar is None:
            return bootstrap
        if self.images == self.n:
            return f"McNemar, exact: p = {self.p_mcnemar:.2g}; {bootstrap}"
        return (
            f"{bootstrap}; McNemar, exact, as if the {self.n} samples were of as many images: "
            f"p = {self.p_mcnemar:.2g}"
        )

    @property
    def lower_is_better(self) -> bool:
        """True of a loss alone."""
        return self.metric == LOSS


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
    aligned = align(runs)
    kept = [row for row in zip(*aligned) if all(_has(one, metric) for one in row)]
    if not kept:
        raise EvaluationError(
            f"No sample has {metric!r} in every run; the first run has "
            f"{', '.join(paired_metrics(runs[0]))}."
        )
    stacked = [_statistics(run, metric) for run in zip(*kept)]
    images = [row[0].image_id for row in kept]
    left, right = np.stack(stacked[: len(a)]), np.stack(stacked[len(a) :])
    return paired_difference(left, right, images=images, relative=relative, seed=seed)


def compare_runs(a: Run, b: Run, metric: str, *, seed: int = 0, flips: int = FLIPS) -> Comparison:
    """Everything about one metric of two runs: difference, tests, categories, largest flips.

    Raises EvaluationError when they hold other samples, or the metric is not known of each.
    """
    pairs = _pairs_with(a, b, metric)
    images = [first.image_id for first, _ in pairs]
    of_a, of_b = (_statistics(run, metric) for run in zip(*pairs))
    difference, p = paired_test(of_a, of_b, images=images, resamples=RESAMPLES, seed=seed)
    gaps = np.array([_value(x, metric) - _value(y, metric) for x, y in pairs])
    higher, lower = int((gaps > 0).sum()), int((gaps < 0).sum())
    binary = metric != LOSS and np.isin([of_a[:, 0], of_b[:, 0]], (0.0, 1.0)).all()
    return Comparison(
        metric=metric,
        n=len(pairs),
        images=len(set(images)),
        a=interval(of_a, images=images, seed=seed),
        b=interval(of_b, images=images, seed=seed),
        difference=difference,
        p_bootstrap=p,
        p_mcnemar=mcnemar(higher, lower) if binary else None,
        only_a_higher=higher,
        only_b_higher=lower,
        categories=_categories(pairs, metric, seed),
        flips=_flips(pairs, gaps, flips),
    )


def what_differs(a: Results, b: Results) -> list[str]:
    """Settings in which two runs differ, as "model_hash x -> y". What was measured must not.

    Raises EvaluationError for runs of different tasks.
    """
    if a.task != b.task:
        raise EvaluationError(
            f"These runs are of different tasks, {a.task!r} and {b.task!r}; compare two of one"
        )
    names = {"model": a.model, "bank": a.bank}, {"model": b.model, "bank": b.bank}
    return differences(names[0] | a.deciding(), names[1] | b.deciding())


def default_metric(results: Results, a: Run, b: Run) -> str:
    """The first metric but the loss that every sample has its own value of, or else the loss."""
    known = [m for m in paired_metrics(a) if m in paired_metrics(b)]
    scores = [m for m in results.metrics if m in known and m != LOSS]
    return (scores or known or [LOSS])[0]


def paired_metrics(run: Run) -> list[str]:
    """Metrics that samples have values of their own of: loss, and the names of their scores."""
    names = dict.fromkeys(name for one in run for name in one.scores)
    return [*([LOSS] if any(one.supervised_tokens for one in run) else []), *names]


def align(runs: Sequence[Run]) -> list[list[Prediction]]:
    """The runs in the first one's order. An id that comes n times is paired in that order.

    Raises EvaluationError where they judge other samples, or the same by other references.
    """
    by_key = [_keyed(run) for run in runs]
    first = by_key[0]
    for number, run in enumerate(by_key[1:], 1):
        if run.keys() != first.keys():
            odd = sorted(key[0] for key in run.keys() ^ first.keys())
            raise EvaluationError(
                f"Run {number} does not judge the same samples as run 0: {len(odd)} are in one "
                f"only, such as {odd[0]!r}. Evaluate both on the same data."
            )
        _check_pairs(first, run, number)
    return [[run[key] for key in first] for run in by_key]


def _check_pairs(
    first: dict[tuple[str, int], Prediction], run: dict[tuple[str, int], Prediction], number: int
) -> None:
    """The same questions about the same images, whatever the images are called."""
    images: dict[str, str] = {}
    for key, one in first.items():
        other = run[key]
        if set(one.references) != set(other.references):
            raise EvaluationError(
                f"Sample {one.id!r} is judged by {one.references[:3]} in run 0 and by "
                f"{other.references[:3]} in run {number}; evaluate both on the same data."
            )
        if images.setdefault(one.image_id, other.image_id) != other.image_id:
            raise EvaluationError(
                f"Sample {one.id!r} shares its image with others in run 0, but not in run "
                f"{number}; evaluate both on the same data."
            )
    if len(set(images.values())) < len(images):
        raise EvaluationError(
            f"Run {number} has {len(set(images.values()))} images where run 0 has {len(images)} "
            "for the same samples; evaluate both on the same data."
        )


def _keyed(run: Run) -> dict[tuple[str, int], Prediction]:
    seen: Counter[str] = Counter()
    found = {}
    for one in run:
        found[one.id, seen[one.id]] = one
        seen[one.id] += 1
    return found


def _pairs_with(a: Run, b: Run, metric: str) -> list[Pair]:
    for name, run in (("A", a), ("B", b)):
        if metric not in paired_metrics(run):
            known = ", ".join(paired_metrics(run)) or "nothing"
            raise EvaluationError(
                f"{name} has no {metric!r} of single samples to compare; it has {known}. A metric "
                "of the whole set, such as BLEU, cannot be paired."
            )
    left, right = align([a, b])
    pairs = [(x, y) for x, y in zip(left, right) if _has(x, metric) and _has(y, metric)]
    if not pairs:
        raise EvaluationError(f"No sample has {metric!r} in both runs.")
    return pairs


def _categories(pairs: Sequence[Pair], metric: str, seed: int) -> list[CategoryDifference]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].category, []).append(pair)
    if set(groups) == {""}:
        return []
    found = []
    for name, members in sorted(groups.items()):
        images = [x.image_id for x, _ in members]
        of_a, of_b = (_statistics(run, metric) for run in zip(*members))
        found.append(
            CategoryDifference(
                category=name or "(none)",
                n=len(members),
                images=len(set(images)),
                a=interval(of_a, images=images, seed=seed).value,
                b=interval(of_b, images=images, seed=seed).value,
                difference=paired_difference(of_a, of_b, images=images, seed=seed),
            )
        )
    return found


def _flips(pairs: Sequence[Pair], gaps: Floats, most: int) -> list[Flip]:
    """Largest first. Equal ones alternate between the sides, those first of which the loss too
    differs most, so that a page of twenty shows both."""
    found = [Flip(x, y, float(gap)) for (x, y), gap in zip(pairs, gaps) if gap]
    found.sort(key=lambda flip: -abs(_value(flip.a, LOSS) - _value(flip.b, LOSS)))
    place: Counter[float] = Counter()
    order = []
    for flip in found:
        order.append((-abs(flip.difference), place[flip.difference], flip.difference < 0))
        place[flip.difference] += 1
    return [flip for _, flip in sorted(zip(order, found), key=lambda each: each[0])][:most]


def _has(prediction: Prediction, metric: str) -> bool:
    return prediction.supervised_tokens > 0 if metric == LOSS else metric in prediction.scores


def _value(prediction: Prediction, metric: str) -> float:
    if metric == LOSS:
        return prediction.loss_sum / max(1, prediction.supervised_tokens)
    return prediction.scores[metric]


def _statistics(predictions: Run, metric: str) -> Floats:
    """(n, 2): loss and tokens, or score and 1."""
    if metric == LOSS:
        return np.array([[p.loss_sum, p.supervised_tokens] for p in predictions], dtype=np.float64)
    return per_item([p.scores[metric] for p in predictions])
