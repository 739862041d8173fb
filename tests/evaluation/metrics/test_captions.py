"""BLEU-4, CIDEr-D and the caption tokens: golden numbers of the public scorers, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.caption_tokens import caption_tokens
from tinyalign.evaluation.metrics.captions import (
    DocumentFrequencies,
    bleu,
    bleu_statistics,
    cider_scores,
)

CAPTIONS = ["a black dog runs through the snow", "two girls on a swing", "a man climbs a rock"]
REFERENCES = [
    ["a black dog runs through the snow", "a dog is running in deep snow"],
    ["two girls play on a swing in the park", "two children swing", "girls on a swing set"],
    ["a man in a red shirt climbs a rock wall"],
]
# pycocoevalcap 1.2 on the above
GOLDEN_BLEU = 0.6006403274992342
GOLDEN_CIDER = [5.493325426604167, 3.7155908567544254, 2.4931097595329197]

words = st.lists(st.sampled_from(["a", "dog", "runs", "in", "snow", "red"]), max_size=9)
images = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=6)


def tokenised():
    return [c.split() for c in CAPTIONS], [[r.split() for r in those] for those in REFERENCES]


def test_bleu_equals_the_public_scorer():
    assert bleu(bleu_statistics(*tokenised()).sum(axis=0)) == pytest.approx(GOLDEN_BLEU, abs=1e-12)


def test_cider_equals_the_public_scorer():
    assert cider_scores(*tokenised()) == pytest.approx(GOLDEN_CIDER, abs=1e-12)


def test_bleu_by_hand():
    # All four words occur (`a` twice); of the bigrams `a dog` does not.
    row = bleu_statistics([["a", "dog", "runs", "a"]], [[["the", "dog", "runs", "a", "a"]]])[0]
    assert row.tolist() == [4, 2, 1, 0, 4, 3, 2, 1, 5]
    clipped = bleu_statistics([["a", "a", "a"]], [[["a", "b"], ["c", "a", "b", "d"]]])[0]
    assert clipped[0] == 1  # three times `a`, but no reference has it twice
    assert clipped[-1] == 2  # 2 and 4 are equally close to 3: the shorter counts


def test_brevity_penalty_by_hand():
    reference = list("abcdefgh")
    value = bleu(bleu_statistics([reference[:4]], [[reference]])[0])
    assert value == pytest.approx(math.exp(1 - 8 / 4), rel=1e-6)


def test_cider_by_hand():
    # Two images, so idf = log 2 for every n-gram of one image alone, log(2/2) = 0 for shared ones.
    # "x y" against "x y": unigrams and bigrams match fully, no 3- or 4-grams: 10 * (1 + 1) / 4.
    scores = cider_scores([["x", "y"], ["q"]], [[["x", "y"]], [["z", "w"]]])
    assert scores == pytest.approx([5.0, 0.0])


def test_cider_length_penalty_by_hand():
    # "x" against "x y z": lengths differ by 2 bigrams; cosine 1/sqrt(3) in unigrams only.
    scores = cider_scores([["x"], ["q"]], [[["x", "y", "z"]], [["w"]]])
    expected = 10 * (1 / math.sqrt(3)) / 4 * math.exp(-(2**2) / (2 * 6.0**2))
    assert scores[0] == pytest.approx(expected)


def test_part_of_a_split_scores_as_in_the_whole_with_its_frequencies():
    captions, references = tokenised()
    frequencies = DocumentFrequencies(references)
    part = cider_scores(captions[1:], references[1:], frequencies)
    assert part == pytest.approx(GOLDEN_CIDER[1:], abs=1e-12)
    assert not np.allclose(cider_scores(captions[1:], references[1:]), GOLDEN_CIDER[1:])


@given(images)
def test_scores_stay_in_range_and_do_not_depend_on_order(items):
    captions, references = [c for c, _ in items], [r for _, r in items]
    rows, ciders = bleu_statistics(captions, references), cider_scores(captions, references)
    assert 0 <= bleu(rows.sum(axis=0)) <= 1 + 1e-9
    assert (ciders >= 0).all()
    assert (ciders <= 10 + 1e-9).all()
    backwards = cider_scores(captions[::-1], references[::-1])
    assert backwards[::-1] == pytest.approx(ciders)


def test_mismatched_lists_and_missing_references_are_refused():
    with pytest.raises(EvaluationError, match="1 captions but references for 2"):
        bleu_statistics([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(EvaluationError, match="Caption 0 has no reference"):
        cider_scores([["a"]], [[]])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black dog runs.", "a black dog runs"),
        ("The dog's ball isn't red!", "the dog 's ball is n't red"),
        ("They can't, cannot; won’t -- ever...", "they ca n't can not wo n't ever"),
        ('A "STOP" sign: 3,000 t-shirts', "a stop sign 3,000 t-shirts"),
        ("the girls' dog (wet) & cat", "the girls dog -lrb- wet -rrb- & cat"),
        ("Mr. Smith in the U.S. today", "mr. smith in the u.s. today"),
        ("?!.,;:", ""),
        ("", ""),
    ],
)
def test_caption_tokens(caption: str, expected: str):
    assert caption_tokens(caption) == expected.split()


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_tokens_are_lower_case_and_never_blank(text: str):
    for token in caption_tokens(text):
        assert token.strip() == token != ""
        assert token == token.lower()
