"""Two runs on the same samples: paired numbers, and refusals where nothing can be paired."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.comparison import (
    align,
    compare,
    compare_runs,
    default_metric,
    paired_metrics,
    what_differs,
)
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import Prediction, Results


def answered(right: list[int], each: int = 2, **settings) -> list[Prediction]:
    """One prediction for each 0 or 1, `each` of them an image."""
    return [
        Prediction(
            id=f"q{i}", image_id=f"i{i // each}", instruction="?", prediction="yes",
            references=("yes",), loss_sum=1.0 + i, supervised_tokens=2,
            scores={"accuracy": float(hit)}, **settings,
        )
        for i, hit in enumerate(right)
    ]  # fmt: skip


def results(**changes) -> Results:
    base = Results(
        task="vqa", n=4, metrics={"loss": Interval(1, 1, 1), "accuracy": Interval(1, 1, 1)},
        model="a", bank=None, seed=0, versions={}, model_hash="x",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_right_and_wrong_answers_are_tested_by_both_tests():
    a, b = answered([1] * 12 + [0] * 8), answered([0] * 9 + [1] * 4 + [0] * 7)
    found = compare_runs(a, b, "accuracy")
    assert (found.n, found.images) == (20, 10)
    assert (found.only_a_higher, found.only_b_higher) == (9, 1)
    assert found.p_mcnemar == pytest.approx(22 / 1024)  # 2 (C(10,0) + C(10,1)) / 2^10
    assert found.difference.value == pytest.approx(0.4)
    assert (found.a.value, found.b.value) == (0.6, 0.2)
    assert found.difference.low > 0
    assert found.p_bootstrap < 0.05


def test_mcnemar_is_gone_by_only_where_every_sample_has_its_own_image():
    right = [1] * 12 + [0] * 8, [0] * 9 + [1] * 4 + [0] * 7
    shared = compare_runs(*(answered(each) for each in right), "accuracy")
    alone = compare_runs(*(answered(each, each=1) for each in right), "accuracy")
    assert shared.p == shared.p_bootstrap
    assert alone.p == alone.p_mcnemar == shared.p_mcnemar
    assert alone.p_line.startswith("McNemar, exact: p = 0.021; paired bootstrap")
    assert "as if the 20 samples" in shared.p_line


def test_what_is_not_right_or_wrong_has_the_bootstraps_p_alone():
    a, b = answered([1, 0, 1, 0]), answered([1, 1, 0, 0])
    assert compare_runs(a, b, "loss").p_mcnemar is None
    soft = [dataclasses.replace(p, scores={"accuracy": 0.3}) for p in b]
    assert compare_runs(a, soft, "accuracy").p_mcnemar is None


def test_a_run_against_itself_differs_nowhere():
    a = answered([1, 0, 1, 0])
    found = compare_runs(a, a[::-1], "accuracy")
    assert found.difference == Interval(0.0, 0.0, 0.0)
    assert (found.p_bootstrap, found.p_mcnemar, found.flips) == (1.0, 1.0, [])


def test_swapping_the_sides_turns_the_signs():
    rng = np.random.default_rng(0)
    a, b = (answered(rng.integers(0, 2, 40).tolist()) for _ in range(2))
    ab, ba = compare_runs(a, b, "accuracy"), compare_runs(b, a, "accuracy")
    assert ab.difference.value == -ba.difference.value
    assert (ab.difference.low, ab.difference.high) == pytest.approx(
        (-ba.difference.high, -ba.difference.low)
    )
    assert (ab.p_bootstrap, ab.p_mcnemar) == (ba.p_bootstrap, ba.p_mcnemar)


def test_categories_are_compared_by_themselves():
    a, b = answered([1, 1, 1, 1, 0, 0]), answered([0, 0, 1, 1, 0, 0])
    kinds = ["count", "count", "colour", "colour", "", ""]
    a = [dataclasses.replace(p, category=kind) for p, kind in zip(a, kinds)]
    b = [dataclasses.replace(p, category=kind) for p, kind in zip(b, kinds)]
    found = {c.category: c for c in compare_runs(a, b, "accuracy").categories}
    assert {name: (c.n, c.a, c.b) for name, c in found.items()} == {
        "count": (2, 1, 0),
        "colour": (2, 1, 1),
        "(none)": (2, 0, 0),
    }
    assert found["count"].difference.value == 1
    assert compare_runs(answered([1, 0]), answered([1, 1]), "accuracy").categories == []


def test_flips_are_the_largest_differences_from_both_sides():
    n = 60
    a = answered([1] * 40 + [0] * 20)
    b = answered([0] * 30 + [1] * 30)
    b = [dataclasses.replace(p, loss_sum=p.loss_sum + (i == 7)) for i, p in enumerate(b)]
    flips = compare_runs(a, b, "accuracy").flips
    assert len(flips) == 20
    assert Counter(flip.difference for flip in flips) == {1.0: 10, -1.0: 10}
    assert flips[0].a.id == "q7"  # of equal flips, the one whose loss differs most
    assert all(flip.a.id == flip.b.id for flip in flips)
    losses = [p.loss_sum * (1 + i) for i, p in enumerate(b)]
    b = [dataclasses.replace(p, loss_sum=x) for p, x in zip(b, losses)]
    gaps = [abs(flip.difference) for flip in compare_runs(a, b, "loss").flips]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == max(abs(x.loss_sum - y.loss_sum) / 2 for x, y in zip(a, b))
    assert len(a) == n


def test_ids_that_come_twice_are_paired_in_order():
    twice = answered([1, 0]) + answered([0, 1])
    other = answered([1, 0]) + answered([1, 1])
    assert [(x.scores["accuracy"], y.scores["accuracy"]) for x, y in zip(*align([twice, other]))] \
        == [(1, 1), (0, 0), (0, 1), (1, 1)]  # fmt: skip
    assert compare([twice], [other], "accuracy").value == -0.25


def test_images_may_have_other_names_but_not_other_groups():
    a, b = answered([1, 0, 1, 0]), answered([1, 1, 1, 0])
    renamed = [dataclasses.replace(p, image_id=f"/elsewhere/{p.image_id}") for p in b]
    assert compare_runs(a, renamed, "accuracy") .difference == \
        compare_runs(a, b, "accuracy").difference  # fmt: skip
    for each in (1, 4):
        other = answered([1, 1, 1, 0], each=each)
        with pytest.raises(EvaluationError, match="image"):
            compare_runs(a, other, "accuracy")


def test_what_cannot_be_compared_is_refused_with_the_reason():
    a = answered([1, 0, 1])
    with pytest.raises(EvaluationError, match="same samples"):
        compare_runs(a, a[:2], "accuracy")
    other = [dataclasses.replace(p, references=("no",)) for p in a]
    with pytest.raises(EvaluationError, match=r"'q0' is judged by \('yes',\) in run 0"):
        compare_runs(a, other, "accuracy")
    with pytest.raises(EvaluationError, match=r"A has no 'bleu4'.*it has loss, accuracy"):
        compare_runs(a, a, "bleu4")
    with pytest.raises(EvaluationError, match="different tasks, 'vqa' and 'caption'"):
        what_differs(results(), results(task="caption"))


def test_settings_that_differ_are_listed():
    b = results(bank="bank", bank_hash="y", settings={"memory": "on", "seconds": 3})
    assert what_differs(results(), b) == [
        "bank None -> bank",
        "bank_hash None -> y",
        "settings.memory None -> on",
    ]
    assert what_differs(b, b) == []


def test_the_first_score_is_the_metric_unless_one_is_named():
    a = answered([1, 0])
    assert paired_metrics(a) == ["loss", "accuracy"]
    assert default_metric(results(), a, a) == "accuracy"
    bare = [dataclasses.replace(p, scores={}) for p in a]
    assert default_metric(results(), a, bare) == "loss"
