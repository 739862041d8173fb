"""easy-VQA: the package's official split, scored by exact match."""

from __future__ import annotations

import pytest

from tinyalign.evaluation.benchmarks.registry import get_benchmark

pytest.importorskip("easy_vqa", reason="the package easy-vqa is not installed")


def test_the_test_split_scored_by_its_own_answers_but_one(write, metrics_of):
    questions = get_benchmark("easy-vqa").questions()
    assert len(questions) == 9673
    rows = [{"id": q.id, "prediction": q.references[0].title() + "."} for q in questions]
    rows[0]["prediction"] = "cat"
    found = metrics_of("easy-vqa", write("predictions.jsonl", rows))
    assert found["accuracy"] == pytest.approx(9672 / 9673)
    assert set(found) == {"accuracy", "yes_no/accuracy", "shape/accuracy", "color/accuracy"}
