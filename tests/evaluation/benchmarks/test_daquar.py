"""DAQUAR: answer sets, WUPS over a WordNet of eight senses, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import get_benchmark

from .conftest import answered


@pytest.fixture
def references(write):
    text = (
        "what is on the desk in the image3 ?\nbook, cup\n"
        "what is red in the image3 ?\nchair\n"
        "how many doors in image7 ?\n2\n"
    )
    return write("qa.37.raw.test.txt", text)


@pytest.fixture
def predictions(write):
    return write(
        "p.jsonl",
        answered([("image3#q0", "Cup, book."), ("image3#q1", "stool"), ("image7#q0", "3")]),
    )


def test_accuracy_is_of_sets(references, predictions, metrics_of):
    assert metrics_of("daquar", predictions, references, wups=False) == {
        "accuracy": pytest.approx(1 / 3)
    }


def test_wups_forgives_near_words(references, predictions, metrics_of, small_wordnet: Path):
    found = metrics_of("daquar", predictions, references, wordnet=small_wordnet)
    # stool and chair: seat is their common hypernym at depth 2 of 3, so 2 * 2 / (3 + 3)
    assert found == {
        "accuracy": pytest.approx(1 / 3),
        "wups_0.9": pytest.approx((1 + 0.1 * 2 / 3) / 3),
        "wups_0.0": pytest.approx((1 + 2 / 3) / 3),
    }


def test_no_wordnet_is_an_error_that_says_how_to_get_one(
    references, predictions, metrics_of, monkeypatch
):
    monkeypatch.setattr("tinyalign.evaluation.metrics.wordnet.usual_places", lambda: [])
    with pytest.raises(EvaluationError, match=r"wordnet-base.*--no-wups"):
        metrics_of("daquar", predictions, references)
    with pytest.raises(EvaluationError, match="wordnet-base"):
        get_benchmark("daquar").ready()


def test_questions_of_the_official_file(references):
    questions = get_benchmark("daquar").questions(references)
    assert [q.id for q in questions] == ["image3#q0", "image3#q1", "image7#q0"]
    assert [q.text for q in questions][1:] == ["what is red?", "how many doors?"]
    assert questions.images(2)[0].path.endswith("image7.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [("one line\n", "found 1 lines"), ("what is it ?\nchair\n", "line 1: expected a question")],
)
def test_damaged_files_are_named(write, content: str, message: str):
    with pytest.raises(EvaluationError, match=message):
        get_benchmark("daquar").questions(write("qa.37.raw.test.txt", content))


def test_the_shared_photos(shared_data: Path):
    questions = get_benchmark("daquar").questions(shared_data / "daquar" / "train.parquet")
    assert len(questions) == 6795
    assert len({q.image_id for q in questions}) == 794
    assert questions.images(6794)[0].data
