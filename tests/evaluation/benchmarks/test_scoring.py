"""A run's predictions, judged by the same code as a file's."""

from __future__ import annotations

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.scoring import score_predictions
from tinyalign.evaluation.results import Prediction


@pytest.fixture
def gqa(write):
    """(benchmark, its three questions)."""
    content = {
        str(i): {"question": "what?", "answer": a, "imageId": f"n{i // 2}"}
        for i, a in enumerate(["dog", "cat", "red"])
    }
    benchmark = get_benchmark("gqa")
    return benchmark, benchmark.questions(write("testdev_balanced_questions.json", content))


def predicted(name: str, text: str) -> Prediction:
    return Prediction(name, f"path/{name}.jpg", "what?", text, ("x",), 3.0, 2)


def test_predictions_of_a_run_in_any_order(gqa):
    benchmark, questions = gqa
    said = [predicted("2", "blue"), predicted("0", "Dog."), predicted("1", "cat")]
    scored, counts = score_predictions(benchmark, questions, said, benchmark.protocol())
    assert scored.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert scored.metrics["loss"].value == pytest.approx(1.5)
    assert [(p.id, p.scores["accuracy"]) for p in scored.predictions] == [
        ("0", 1.0),
        ("1", 1.0),
        ("2", 0.0),
    ]
    assert counts["missing"] == 0


def test_a_skipped_sample_stays_in_the_denominator(gqa):
    benchmark, questions = gqa
    said = [predicted("0", "dog"), predicted("1", "cat")]
    with pytest.raises(EvaluationError, match="1 of 3 questions have no answer"):
        score_predictions(benchmark, questions, said, benchmark.protocol())
    scored, counts = score_predictions(
        benchmark, questions, said, benchmark.protocol(), missing="wrong"
    )
    assert scored.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert (len(scored.predictions), counts["missing"]) == (2, 1)


def test_two_predictions_of_one_question_are_refused(gqa):
    benchmark, questions = gqa
    with pytest.raises(EvaluationError, match="2 predictions have only 1 ids"):
        score_predictions(benchmark, questions, [predicted("0", "a")] * 2, benchmark.protocol())


def test_intervals_are_over_images_not_questions(write):
    """Two images with ten equal questions each leave as much doubt as two questions do."""
    benchmark = get_benchmark("gqa")
    content = {
        str(i): {"question": "what?", "answer": "dog", "imageId": f"n{i // 10}"} for i in range(20)
    }
    questions = benchmark.questions(write("testdev_balanced_questions.json", content))
    said = [predicted(str(i), "dog" if i < 10 else "cat") for i in range(20)]
    scored, _ = score_predictions(benchmark, questions, said, benchmark.protocol())
    accuracy = scored.metrics["accuracy"]
    assert (accuracy.low, accuracy.value, accuracy.high) == (0.0, 0.5, 1.0)
