"""ScienceQA: which letter an answer gives, and accuracy with and without images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.scienceqa import LETTERS, parse

from .conftest import answered


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. a colony", "B"),
        ("B.", None),
        ("b", None),
        (" B", None),
        ("F", None),
        ("Because it is so. The answer is C.", "C"),
        ("The answer is C", None),  # the pattern wants one more character
        ("The answer is C!", "C"),  # any will do
        ("The answer is A. No. The answer is B.", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None):
    assert parse(text) == letter


@pytest.fixture
def references(write):
    problem = {"question": "Which?", "choices": ["x", "y"], "hint": ""}
    problems = {
        "4": {**problem, "answer": 0, "image": "image.png", "hint": "A map."},
        "5": {**problem, "answer": 1, "image": None},
        "6": {**problem, "answer": 1, "image": "image.png"},
        "7": {**problem, "answer": 0, "image": None},
    }
    write("pid_splits.json", {"train": ["7"], "test": ["4", "5", "6"]})
    return write("problems.json", problems).parent


def test_accuracy_with_image_and_over_all(references, write, metrics_of):
    predictions = write("p.jsonl", answered([("4", "A"), ("5", "B. y"), ("6", "The answer is E.")]))
    found = metrics_of("scienceqa", predictions, references)
    assert found == {"image_accuracy": 0.5, "accuracy": pytest.approx(2 / 3)}


def test_a_problem_without_an_answer_is_wrong_only_when_one_says_so(references, write, metrics_of):
    predictions = write("p.jsonl", answered([("4", "A"), ("5", "B")]))
    with pytest.raises(EvaluationError, match="1 of 3 questions have no answer"):
        metrics_of("scienceqa", predictions, references)
    found = metrics_of("scienceqa", predictions, references, missing="wrong")
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_prompt_and_images(references):
    scienceqa = get_benchmark("scienceqa")
    questions = scienceqa.questions(references)
    samples = scienceqa.samples(questions, scienceqa.protocol())
    assert samples[0].instruction == (
        "Context: A map.\nWhich?\nA. x\nB. y\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert samples[1].instruction.startswith("Which?\nA. x")
    assert samples[0].images[0].path.endswith("4/image.png")
    assert samples[1].images == ()
    kept = [i for i, q in enumerate(questions) if q.has_image]
    asked = scienceqa.samples(questions.some(kept), scienceqa.protocol())
    assert [s.id for s in asked] == ["4", "6"]
    assert asked[1].images[0].path.endswith("6/image.png")


def test_golden_parses(shared_data: Path):
    """The published result file of LLaVA: our parse of every raw text equals the stored one."""
    stored = json.loads((shared_data / "golden/sqa_llava_lcs_558k_13b.json").read_text())
    parsed = {name: parse(text) for name, text in stored["outputs"].items()}
    indices = {n: LETTERS.index(x) if x in LETTERS else -1 for n, x in parsed.items()}
    assert len(indices) == 4241
    assert indices == stored["results"]


def test_a_stored_result_file_can_be_scored_again(references, write, metrics_of):
    stored = write("r.json", {"acc": 1.0, "outputs": {"4": "A", "5": "B", "6": "A"}})
    assert metrics_of("scienceqa", stored, references)["accuracy"] == pytest.approx(2 / 3)
