"""The files of an evaluation: their stable keys, whole or not at all, and what they allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.comparison import compare
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import (
    Prediction,
    Results,
    Skipped,
    library_versions,
    read_predictions,
    read_results,
    write_results,
)


def make_results() -> Results:
    return Results(
        task="vqa",
        n=2,
        metrics={"accuracy": Interval(0.5, 0.0, 1.0)},
        model="runs/a/model",
        bank=None,
        seed=3,
        versions=library_versions(),
        settings={"batch_size": 8},
        skipped=[Skipped("x", "truncated")],
    )


def make_prediction(i: int, loss: float = 2.0, tokens: int = 4, **scores: float) -> Prediction:
    return Prediction(f"s{i}", f"i{i // 2}", "what?", "a", ("a", "b"), loss, tokens, scores=scores)


def test_results_file_has_the_keys_others_script_against(tmp_path: Path):
    path = write_results(tmp_path / "out" / "mine.json", make_results(), [make_prediction(0)])
    content = json.loads(path.read_text())
    assert path.name == "mine.json"
    assert {"task", "n", "metrics", "model", "bank", "seed", "versions"} <= content.keys()
    assert content["metrics"]["accuracy"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert {"torch", "transformers", "tinyalign"} <= content["versions"].keys()
    assert sorted(p.name for p in path.parent.iterdir()) == ["mine.json", "predictions.jsonl"]


def test_results_and_predictions_come_back_as_they_were(tmp_path: Path):
    predictions = [make_prediction(i, accuracy=1.0) for i in range(3)]
    path = write_results(tmp_path, make_results(), predictions)
    assert path == tmp_path / "results.json"
    assert read_results(tmp_path) == read_results(path) == make_results()
    assert read_predictions(tmp_path) == read_predictions(path) == predictions


@given(st.text(max_size=40))
def test_any_text_survives_the_file(text: str):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        one = Prediction("id", "image", text, text, (text,), 0.0, 0)
        write_results(folder, make_results(), [one])
        assert read_predictions(folder) == [one]


def test_a_crash_while_writing_keeps_the_old_files(tmp_path: Path):
    write_results(tmp_path, make_results(), [make_prediction(0)])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def failing():
        yield make_prediction(1)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_results(tmp_path, make_results(), failing())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_not_ours_is_named(tmp_path: Path):
    with pytest.raises(EvaluationError, match=r"results\.json"):
        read_results(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(EvaluationError, match="line 1"):
        read_predictions(tmp_path)


def test_compare_pairs_by_id_whatever_the_order():
    a = [make_prediction(i, loss=1.0 + i) for i in range(6)]
    b = [make_prediction(i, loss=3.0 + i) for i in range(6)]
    found = compare([a], [b[::-1]])
    assert found.value == pytest.approx(-2 / 4)
    assert found.low == pytest.approx(found.high)  # the same gain everywhere leaves no doubt


def test_compare_averages_seeds_and_reads_scores():
    a = [[make_prediction(i, cider=s + i) for i in range(4)] for s in (1.0, 3.0)]
    b = [[make_prediction(i, cider=1.0 * i) for i in range(4)]]
    assert compare(a, b, "cider").value == pytest.approx(2.0)
    assert compare(a, b, "cider", relative=True).value == pytest.approx(2.0 / 1.5)


def test_compare_refuses_other_samples_and_unknown_metrics():
    a = [make_prediction(i) for i in range(3)]
    with pytest.raises(EvaluationError, match="same samples"):
        compare([a], [a[:2]])
    with pytest.raises(EvaluationError, match="'cider'"):
        compare([a], [a], "cider")
    with pytest.raises(EvaluationError, match="at least one run"):
        compare([], [a])
