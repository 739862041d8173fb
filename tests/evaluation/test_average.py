"""The average over the paper's eight benchmarks."""

from __future__ import annotations

import pytest

from tinyalign.evaluation.average import AVERAGED, average
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import Results


def result(task: str, **metrics: float) -> Results:
    found = {name.replace("_judge", " (judge=x)"): Interval(v, v, v) for name, v in metrics.items()}
    return Results(task, 1, found, "m", None, 0, {})


def test_each_benchmark_counts_by_its_own_metric_on_one_scale():
    found = average(
        [
            result("mme", cognition=800, perception=1500),
            result("pope", accuracy=0.9, f1=0.8),
            result("scienceqa", accuracy=0.1, image_accuracy=0.7),
            result("mm-vet", score_judge=0.3),
            result("vqa", accuracy=1.0),
        ]
    )
    assert found.parts == pytest.approx({"mme": 75, "pope": 80, "scienceqa": 70, "mm-vet": 30})
    assert found.value == pytest.approx((75 + 80 + 70 + 30) / 4)
    assert found.missing == ("gqa", "mmmu", "textvqa", "vqav2")


def test_the_eight_are_the_papers():
    assert len(AVERAGED) == 8
    assert average([]).missing == tuple(AVERAGED)
