"""Bootstrap intervals: what they must be, checked against theory and against plain loops."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.captions import bleu, bleu_statistics
from tinyalign.evaluation.metrics.intervals import (
    Interval,
    interval,
    mcnemar,
    paired_difference,
    paired_test,
    per_item,
)


def normal_scores(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_interval_of_a_mean_agrees_with_the_normal_theory():
    scores = normal_scores(2000)
    found = interval(per_item(scores))
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    assert found.value == pytest.approx(scores.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_items_of_one_image_are_resampled_together():
    scores = np.repeat(normal_scores(300), 10)  # ten copies each: no new evidence
    images = np.repeat(np.arange(300), 10).tolist()
    alone = interval(per_item(scores[::10]))
    clustered = interval(per_item(scores), images=images)
    naive = interval(per_item(scores))
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_loss_per_token_is_a_ratio_of_sums_not_a_mean_of_ratios():
    statistics = [[10.0, 2], [1.0, 8]]
    assert interval(statistics).value == pytest.approx(11 / 10)


def test_bleu_is_resampled_from_its_counts_as_from_the_captions():
    rng = np.random.default_rng(0)
    captions = [list(rng.choice(list("abc"), size=rng.integers(4, 9))) for _ in range(12)]
    references = [[list(rng.choice(list("abc"), size=8))] for _ in range(12)]
    statistics = bleu_statistics(captions, references)
    rng = np.random.default_rng(3)
    slow = []
    for drawn in rng.integers(12, size=(200, 12)):
        again = bleu_statistics([captions[i] for i in drawn], [references[i] for i in drawn])
        slow.append(bleu(again.sum(axis=0)))
    fast = interval(statistics, statistic=bleu, resamples=200, seed=3)
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_same_seed_same_interval_other_seed_another():
    statistics = per_item(normal_scores(100))
    assert interval(statistics, seed=1) == interval(statistics, seed=1)
    assert interval(statistics, seed=1) != interval(statistics, seed=2)


def test_pairing_removes_what_both_sides_share():
    hard = normal_scores(500) * 10
    a, b = hard + 0.1 + 0.05 * normal_scores(500, 1), hard
    found = paired_difference(per_item(a), per_item(b))
    assert found.value == pytest.approx((a - b).mean())
    assert found.excludes_zero
    assert interval(per_item(a)).low < hard.mean() < interval(per_item(a)).high


def test_a_run_does_not_differ_from_itself():
    statistics = per_item(normal_scores(50))
    assert paired_difference(statistics, statistics) == Interval(0.0, 0.0, 0.0)


def test_relative_difference_is_a_fraction_of_the_second():
    b = per_item(np.full(20, 2.0))
    a = per_item(np.full(20, 1.9))
    found = paired_difference(a, b, relative=True)
    assert found.value == pytest.approx(-0.05)
    assert found.high < 0


def test_several_seeds_are_averaged_within_each_resample():
    base = normal_scores(400)
    noise = np.stack([normal_scores(400, seed) for seed in (1, 2, 3)])
    runs = per_item(base + noise)  # (3, 400, 2)
    together = interval(runs)
    of_the_mean = interval(per_item((base + noise).mean(axis=0)))
    assert (together.value, together.low, together.high) == pytest.approx(
        (of_the_mean.value, of_the_mean.low, of_the_mean.high)
    )
    difference = paired_difference(runs, per_item(base))
    assert difference.value == pytest.approx(noise.mean())


def test_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        found = interval(per_item(normal_scores(60, seed)), resamples=300, seed=seed)
        covered += found.low <= 0 <= found.high
    assert 178 <= covered <= 199  # 95 % of 200 is 190


@given(only_a=st.integers(0, 12), only_b=st.integers(0, 12))
def test_mcnemar_is_the_share_of_coin_rows_at_least_as_uneven(only_a: int, only_b: int):
    n = only_a + only_b
    rows = [comb(n, heads) for heads in range(n + 1)]
    uneven = [c for heads, c in enumerate(rows) if abs(2 * heads - n) >= abs(only_a - only_b)]
    assert mcnemar(only_a, only_b) == pytest.approx(sum(uneven) / 2**n)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_of_many_and_of_hopeless_counts():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5000, 5100) == pytest.approx(0.3247, abs=2e-4)  # normal: z = 99 / sqrt(10100)
    assert mcnemar(0, 3000) == 0  # smaller than any float


def test_bootstrap_p_is_below_a_twentieth_where_the_interval_excludes_zero():
    agreeing = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(0.25, 1, 80), rng.normal(0, 1, 80)
        found, p = paired_test(per_item(a), per_item(b), seed=seed)
        assert found == paired_difference(per_item(a), per_item(b), seed=seed)
        assert 0 < p <= 1
        agreeing += found.excludes_zero == (p < 0.05)
    assert agreeing >= 39  # a tie at the edge aside


def test_bootstrap_p_of_no_difference_is_even():
    below = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, 60))
        below += paired_test(per_item(a), per_item(b), resamples=400, seed=seed)[1] < 0.2
    assert 22 <= below <= 60  # 20 % of 200 is 40


def test_copies_of_one_image_make_no_p_smaller():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.2, 1, 50), rng.normal(size=50)
    copies = np.repeat(a, 9), np.repeat(b, 9)
    images = np.repeat(np.arange(50), 9).tolist()
    alone = paired_test(per_item(a), per_item(b))
    clustered = paired_test(per_item(copies[0]), per_item(copies[1]), images=images)
    assert clustered[1] == pytest.approx(alone[1])
    assert paired_test(per_item(copies[0]), per_item(copies[1]))[1] < alone[1] / 2


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(EvaluationError, match="at least one item"):
        interval(np.zeros((0, 2)))
    with pytest.raises(EvaluationError, match="same items"):
        paired_difference(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(EvaluationError, match="3 items but 2 image ids"):
        interval(np.ones((3, 2)), images=["a", "b"])
