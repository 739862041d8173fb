"""The VQA normaliser and its quirks, and the two accuracies. The official script agrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.evaluation.metrics.vqa import (
    normalise_answer,
    official_vqa_accuracy,
    soft_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        (" The  red\tdog\n", "red dog"),
        ("a an the", ""),
        ("two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("wouldnt've", "wouldn't've"),
        ("twas", "'twas"),
        ("Im", "im"),  # lower-cased before the lookup of `Im`, so never expanded
        ("somebody'd", "somebodyd"),  # the wrong way round, as in the script
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one dash at a space removes them all
        ("3,000", "3000"),
        ("1,2-3", "123"),  # a comma between digits glues everything
        ("3.5", "3.5"),
        ("5.", "5"),  # the script's `(?!<=\\d)` guards nothing: a final point goes
        ("john's", "john's"),
        ("john 's", "john 's"),
        ("." * 40, "." * 8),  # only the first 32 points: re.UNICODE stands where count does
    ],
)
def test_normal_forms(answer: str, normal: str):
    assert normalise_answer(answer) == normal


@pytest.mark.parametrize(
    ("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_soft_accuracy_of_ten_annotators(matches: int, score: float):
    assert soft_accuracy("x", ["x"] * matches + ["y"] * (10 - matches)) == pytest.approx(score)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_soft_accuracy_is_the_mean_over_leave_one_out_subsets(references: list[str]):
    subsets = [references[:i] + references[i + 1 :] for i in range(len(references))]
    expected = sum(min(1, subset.count("a") / 3) for subset in subsets) / len(subsets)
    assert soft_accuracy("a", references) == pytest.approx(expected)


def test_the_official_trap_of_identical_references():
    assert official_vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert official_vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1
    assert vqa_accuracy("Yes", ["yes"] * 10) == 1


def test_votes_and_accepted_answers():
    assert vqa_accuracy("A circle.", ["circle"]) == 1
    assert vqa_accuracy("square", ["circle"]) == 0
    assert vqa_accuracy("2", ["pair", "two"]) == 1
    assert vqa_accuracy("", ["circle"]) == 0
    assert vqa_accuracy("circle", []) == 0
    votes = ["red"] * 2 + ["dark red"] * 8
    assert vqa_accuracy("Red", votes) == pytest.approx(0.6)


@given(st.text(max_size=30))
def test_an_answer_always_matches_itself(text: str):
    assert vqa_accuracy(text, [text]) == 1
