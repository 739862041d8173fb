"""How sure a number is: 95 % bootstrap intervals over images.

Every metric here is a function of *summed* per-item statistics: a mean of (score, 1), the loss
per token of (loss sum, tokens), BLEU of its n-gram counts. Resampling images then means weighing
rows and summing again: one matrix product for all resamples, whatever the metric.

Items of one image are resampled together (cluster bootstrap), because questions about the same
photo are not independent evidence. Source: Efron & Tibshirani 1993, percentile method.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyalign.errors import EvaluationError

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps summed statistics (..., m) to values (...)."""

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK = 4_000_000  # weights held at once


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """`{value, low, high}`, as results.json holds it."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def ratio(sums: Floats) -> Floats:
    """First column over the second: a mean of (score, 1), a loss per token of (loss, tokens)."""
    return sums[..., 0] / sums[..., 1]


def per_item(scores: npt.ArrayLike) -> Floats:
    """Scores (..., n) as statistics (..., n, 2) whose `ratio` is their mean."""
    values = np.asarray(scores, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=-1)


def interval(
    statistics: npt.ArrayLike,
    *,
    statistic: Statistic = ratio,
    images: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of `statistic` of the column sums.

    Args:
        statistics: (n, m), one row an item; or (seeds, n, m), several runs on the same items,
            whose values are averaged within each resample.
        images: which image each item belongs to; by default every item has its own.
    """
    runs = _as_runs(statistics)
    sums = _sum_by_image(runs, images)
    draws = [
        statistic(_resum(weights, sums)).mean(axis=0)
        for weights in _weights(sums.shape[1], resamples, seed)
    ]
    return _percentiles(_point(sums, statistic), np.concatenate(draws), level)


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    statistic: Statistic = ratio,
    images: Sequence[Hashable] | None = None,
    relative: bool = False,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of `statistic(a) - statistic(b)` on the same items, resampled together.

    Args:
        a, b: (n, m) or (seeds, n, m); the same items in the same order. The number of seeds may
            differ; each side is averaged over its own.
        relative: divide the difference by `statistic(b)`: -0.05 says a is 5 % below b.
    """
    point, draws = _paired_draws(a, b, statistic, images, relative, resamples, seed)
    return _percentiles(point, draws, level)


def paired_test(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    images: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Interval, float]:
    """The interval of `paired_difference` and the two-sided bootstrap p of no difference.

    p is twice the smaller share of resamples on either side of zero, each share counted with one
    resample more than was drawn: p never is 0, and below 0.05 where the interval excludes zero.
    """
    point, draws = _paired_draws(a, b, ratio, images, False, resamples, seed)
    fewer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return _percentiles(point, draws, LEVEL), min(1.0, 2 * (fewer + 1) / (len(draws) + 1))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p that two models are equally often right, from where they disagree.

    only_a, only_b: on how many items only the one, only the other is right. Under the null each
    of these is a fair coin. Takes items as independent of one another.
    Source: McNemar 1947, with the binomial tail in place of the chi-square.
    """
    n = only_a + only_b
    term = tail = 1
    for i in range(1, min(only_a, only_b) + 1):
        term = term * (n - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / 2**n)


def _paired_draws(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    statistic: Statistic,
    images: Sequence[Hashable] | None,
    relative: bool,
    resamples: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """The difference of a and b, and the same in every resample."""
    left, right = _as_runs(a), _as_runs(b)
    if left.shape[1] != right.shape[1]:
        raise EvaluationError(
            f"A paired difference needs the same items on both sides: {left.shape[1]} against "
            f"{right.shape[1]}. Align the two files by sample id first."
        )
    sums_a, sums_b = _sum_by_image(left, images), _sum_by_image(right, images)

    def difference(of_a: Floats, of_b: Floats) -> Floats:
        return (of_a - of_b) / of_b if relative else of_a - of_b

    draws = [
        difference(
            statistic(_resum(weights, sums_a)).mean(axis=0),
            statistic(_resum(weights, sums_b)).mean(axis=0),
        )
        for weights in _weights(sums_a.shape[1], resamples, seed)
    ]
    point = difference(_point(sums_a, statistic), _point(sums_b, statistic))
    return point, np.concatenate(draws)


def _as_runs(statistics: npt.ArrayLike) -> Floats:
    """(n, m) or (seeds, n, m) -> (seeds, n, m)."""
    runs = np.asarray(statistics, dtype=np.float64)
    if runs.ndim == 2:
        runs = runs[None]
    if runs.ndim != 3 or runs.shape[1] == 0:
        raise EvaluationError(
            f"Expected statistics of shape (items, m) or (seeds, items, m) with at least one item, "
            f"got {runs.shape}. Use per_item() for plain scores."
        )
    return runs


def _sum_by_image(runs: Floats, images: Sequence[Hashable] | None) -> Floats:
    """(seeds, n, m) -> (seeds, images, m), images in order of first appearance."""
    if images is None:
        return runs
    if len(images) != runs.shape[1]:
        raise EvaluationError(f"{runs.shape[1]} items but {len(images)} image ids.")
    number: dict[Hashable, int] = {}
    rows = np.array([number.setdefault(image, len(number)) for image in images])
    sums = np.zeros((runs.shape[0], len(number), runs.shape[2]))
    for run, total in zip(runs, sums):
        np.add.at(total, rows, run)
    return sums


def _weights(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn: blocks of (b, images), each row summing to `images`."""
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, _BLOCK // images))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)


def _resum(weights: Floats, sums: Floats) -> Floats:
    """(b, images), (seeds, images, m) -> (seeds, b, m)."""
    return np.asarray(np.matmul(weights, sums))


def _point(sums: Floats, statistic: Statistic) -> Floats:
    return np.asarray(statistic(sums.sum(axis=1)).mean(axis=0))


def _percentiles(value: Floats, draws: Floats, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
