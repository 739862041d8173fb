"""What neighbours agree on: likeness of texts, weighted votes, and who speaks for all."""

from __future__ import annotations

import numpy as np
import pytest

from tinyalign.memory.search.consensus import (
    NgramFrequencies,
    ngram_hashes,
    similarities,
    spokesmen,
    votes,
    weights,
    words,
)

CORPUS = [
    "a dog runs over the grass",
    "a brown dog runs on grass",
    "two children play in a pool",
    "a man in a red shirt climbs a rock",
    "a woman rides a bicycle down the street",
]


@pytest.fixture(scope="module")
def frequencies() -> NgramFrequencies:
    return NgramFrequencies(CORPUS)


def test_a_text_is_like_itself_and_not_like_one_that_shares_no_word(frequencies) -> None:
    alike = similarities(["a dog runs", "two cats sleep", "blue"], frequencies)
    np.testing.assert_allclose(np.diag(alike), 1.0)
    np.testing.assert_allclose(alike, alike.T)
    assert alike[0, 1] == alike[0, 2] == 0.0


def test_rare_words_and_word_order_count(frequencies) -> None:
    alike = similarities(
        ["a dog runs over the grass", "a dog runs on snow", "a man on a horse",
         "grass the over runs dog a"], frequencies,
    )  # fmt: skip
    assert alike[0, 1] > alike[0, 2]  # "dog runs" says more than "a"
    assert alike[0, 3] < 0.5  # the same words, in another order


def test_a_difference_in_length_is_punished(frequencies) -> None:
    short, long = "a dog runs", "a dog runs " + "on and on " * 10
    alike = similarities([short, short, long], frequencies)
    assert alike[0, 2] < 0.01 < alike[0, 1]


def test_short_answers_are_alike_or_not_whatever_their_length(frequencies) -> None:
    alike = similarities(["red", "red", "dark blue", "dark blue", "blue"], frequencies)
    np.testing.assert_allclose(alike[[0, 2], [1, 3]], 1.0)
    assert 0.0 < alike[2, 4] < 1.0


def test_of_short_answers_the_agreement_is_the_weighted_vote(frequencies) -> None:
    answers, scores = ["chair", "table", "table", "lamp"], [0.9, 0.85, 0.8, 0.1]
    alike = similarities(answers, frequencies)
    share = np.exp(5.0 * np.array(scores))
    share /= share.sum()
    found = votes(alike, scores, 5.0)
    np.testing.assert_allclose(
        found, [share[0], share[1] + share[2], share[1] + share[2], share[3]]
    )
    assert answers[int(found.argmax())] == "table"
    assert answers[int(votes(alike, scores, 50.0).argmax())] == "chair"  # the nearest outweighs all


def test_of_captions_the_one_most_like_the_others_wins(frequencies) -> None:
    near = ["a cat sits", "a dog runs on grass", "a brown dog runs", "a dog runs over grass"]
    chosen = spokesmen(similarities(near, frequencies), [0.9, 0.5, 0.5, 0.5], 0.0, 1)
    assert near[chosen[0]].startswith("a dog runs")


def test_further_spokesmen_say_what_is_not_said_yet(frequencies) -> None:
    near = ["a dog runs", "a dog runs", "a dog runs", "two children play in a pool"]
    alike = similarities(near, frequencies)
    assert spokesmen(alike, [0.9, 0.8, 0.7, 0.6], 5.0, 2) == [0, 3]
    everyone = spokesmen(alike, [0.9, 0.8, 0.7, 0.6], 5.0, 9)
    assert sorted(everyone) == [0, 1, 2, 3]  # nobody twice, and no more than there are


def test_texts_without_words_say_nothing_and_break_nothing(frequencies) -> None:
    assert similarities([], frequencies).shape == (0, 0)
    assert not similarities(["", "..."], frequencies).any()
    assert spokesmen(similarities(["", ""], frequencies), [1.0, 0.5], 5.0, 2) == [0, 1]
    np.testing.assert_allclose(similarities(["a dog"], NgramFrequencies([])), 1.0)


def test_common_ngrams_weigh_less_and_unknown_ones_most(frequencies) -> None:
    a, dog, unicorn = (ngram_hashes(word)[0] for word in ("a", "dog", "unicorn"))
    idf = [frequencies.weights(one)[0] for one in (a, dog, unicorn)]
    assert idf == sorted(idf)
    assert idf[0] < idf[1] < idf[2]


def test_weights_are_shares() -> None:
    np.testing.assert_allclose(weights([0.5, 0.5], 100.0), [0.5, 0.5])
    assert weights([], 1.0).shape == (0,)
    assert weights([1.0, 0.0], 1000.0).tolist() == [1.0, 0.0]


def test_words_are_lower_case_and_without_points() -> None:
    assert words("A dog’s bone, isn't it?") == ["a", "dog's", "bone", "isn't", "it"]
