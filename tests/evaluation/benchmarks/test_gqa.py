"""GQA: exact match after LLaVA's conversion, over the balanced questions."""

from __future__ import annotations

import pytest

from tinyalign.evaluation.benchmarks.gqa import parse
from tinyalign.evaluation.benchmarks.registry import get_benchmark

from .conftest import answered


def question(answer: str, image: str, structural: str, balanced: bool = True) -> dict:
    return {
        "question": "Is it red?",
        "answer": answer,
        "imageId": image,
        "isBalanced": balanced,
        "types": {"structural": structural},
    }


@pytest.fixture
def questions(write):
    return write(
        "gqa/testdev_balanced_questions.json",
        {
            "1": question("yes", "n1", "verify"),
            "2": question("dog", "n1", "query"),
            "3": question("left", "n2", "choose"),
            "4": question("no", "n2", "verify", balanced=False),
        },
    )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("Yes.", "yes"), ("yes...", "yes"), (" yes", " yes"), ("A dog", "a dog"), ("yes!", "yes!")],
)
def test_only_final_points_and_case_are_forgiven(text: str, parsed: str):
    assert parse(text) == parsed


def test_accuracy_over_balanced_questions_and_by_kind(questions, write, metrics_of):
    predictions = write("p.jsonl", answered([("1", "Yes."), ("2", "a dog"), ("3", "left")]))
    found = metrics_of("gqa", predictions, questions.parent)
    assert found == {
        "accuracy": pytest.approx(2 / 3),
        "binary/accuracy": 1.0,
        "open/accuracy": 0.0,
    }


def test_what_a_model_is_asked(questions):
    gqa = get_benchmark("gqa")
    samples = gqa.samples(gqa.questions(questions), gqa.protocol())
    assert len(samples) == 3
    assert samples[0].instruction == (
        "Is it red?\nAnswer the question using a single word or phrase."
    )
    assert samples[0].references == ("yes",)
    assert samples[2].images[0].path.endswith("n2.jpg")
    assert gqa.samples(gqa.questions(questions), gqa.protocol("plain"))[0].instruction == (
        "Is it red?"
    )
