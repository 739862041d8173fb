"""A memory that can be copied from: what texts say next, the gate, the mixture."""

from __future__ import annotations

import math

import pytest
import torch

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.copying import (
    FEATURES,
    LONGEST,
    CopyFromMemory,
    CopyGate,
    copy_texts,
    mixed,
    mixed_supervised,
    next_tokens,
    tails,
    take_copy_texts,
    teacher_tails,
)

END, VOCABULARY = 2, 12
TEXTS = copy_texts([[[5, 6, 7, END], [5, 6, 8, END], [9, END]]], [[0.5, 0.3, 0.2]], [0.4])


def said(*tokens: int) -> torch.Tensor:
    return torch.tensor([tokens], dtype=torch.int64).reshape(1, -1)


def follows(*tokens: int) -> dict[int, float]:
    probabilities, _ = next_tokens(TEXTS, tails(said(*tokens)), VOCABULARY, 8.0)
    return {i: round(p, 4) for i, p in enumerate(probabilities[0].tolist()) if p}


def test_at_the_start_the_first_tokens_vote() -> None:
    assert follows() == {5: 0.8, 9: 0.2}


def test_followed_from_the_start_it_is_the_vote_of_a_trie() -> None:
    assert follows(5) == {6: 1.0}
    assert follows(5, 6) == {7: 0.625, 8: 0.375}
    assert follows(5, 6, 7) == {END: 1.0}
    assert follows(9) == {END: 1.0}


def test_in_the_middle_of_a_sentence_matching_ends_vote() -> None:
    assert follows(3, 6) == {7: 0.625, 8: 0.375}


def test_a_longer_match_counts_more() -> None:
    texts = copy_texts([[[4, 5, 6], [3, 5, 7]]], [[0.5, 0.5]], [0.4])
    found, match = next_tokens(texts, tails(said(1, 4, 5)), VOCABULARY, 8.0)
    assert match.tolist() == [2]
    assert found[0, 6] == pytest.approx(8 / 9)
    assert found[0, 7] == pytest.approx(1 / 9)


def test_where_nothing_matches_nothing_is_said() -> None:
    found, match = next_tokens(TEXTS, tails(said(3)), VOCABULARY, 8.0)
    assert not found.any()
    assert match.tolist() == [0]


def test_only_the_last_tokens_are_compared() -> None:
    long = list(range(3, 12)) * 3
    texts = copy_texts([[[*long, END]]], [[1.0]], [0.4])
    found, match = next_tokens(texts, tails(said(1, *long)), VOCABULARY, 8.0)
    assert match.tolist() == [LONGEST]
    assert found[0, END] > 0


def test_a_query_without_neighbours_copies_nothing() -> None:
    texts = copy_texts([[[5, END]], []], [[1.0], []], [0.4, 0.0])
    log_probs = torch.log_softmax(torch.randn(2, VOCABULARY), dim=1)
    found = mixed(log_probs, texts, tails(torch.zeros(2, 0, dtype=torch.int64)),
                  CopyGate.constant(0.5))  # fmt: skip
    assert torch.equal(found[1], log_probs[1])
    assert not torch.allclose(found[0], log_probs[0])
    nobody = copy_texts([[]], [[]], [0.0])
    alone = mixed(log_probs[:1], nobody, tails(said()), CopyGate.constant(0.5))
    assert torch.equal(alone, log_probs[:1])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_mixture_is_a_distribution_of_both(share: float) -> None:
    log_probs = torch.log_softmax(torch.randn(1, VOCABULARY), dim=1)
    found = mixed(log_probs, TEXTS, tails(said(5, 6)), CopyGate.constant(share)).exp()[0]
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)
    expected = (1 - share) * log_probs.exp()[0]
    expected[7] += share * 0.625
    expected[8] += share * 0.375
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_gate_may_follow_the_evidence() -> None:
    weights = [0.0] * len(FEATURES)
    weights[FEATURES.index("one")], weights[FEATURES.index("agreement")] = -20.0, 40.0
    gate = CopyGate(tuple(weights))
    log_probs = torch.log_softmax(torch.randn(1, VOCABULARY), dim=1)
    sure = mixed(log_probs, TEXTS, tails(said(5)), gate).exp()
    assert float(sure[0, 6]) > 0.99  # all agree
    unsure = mixed(log_probs, TEXTS, tails(said(5, 6)), CopyGate((-30.0, *weights[1:]))).exp()
    torch.testing.assert_close(unsure, log_probs.exp(), atol=0.02, rtol=0)


def test_rows_of_beams_belong_to_their_prompts() -> None:
    two = copy_texts([[[5, END]], [[9, END]]], [[1.0], [1.0]], [0.4, 0.4])
    mixing = CopyFromMemory(two, CopyGate.constant(0.9), prompt_length=3)
    logits = torch.randn(6, VOCABULARY)
    best = mixing(torch.zeros(6, 3, dtype=torch.int64), logits).argmax(dim=1)
    assert best.tolist() == [5, 5, 5, 9, 9, 9]


def test_what_is_forbidden_is_not_copied_either() -> None:
    mixing = CopyFromMemory(TEXTS, CopyGate.constant(0.9), prompt_length=0)
    logits = torch.randn(1, VOCABULARY)
    logits[0, 5] = -torch.inf
    assert mixing(said(), logits)[0, 5] == -torch.inf


def test_in_training_every_answer_starts_anew() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, 7], [-100, 9, END, -100, 5]])
    found, rows = teacher_tails(labels)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [said(), said(5), said(5, 6), said(), said(9), said()]
    assert torch.equal(found, torch.cat([tails(one) for one in expected]))


def test_the_loss_s_mixture_is_generation_s() -> None:
    labels = torch.tensor([[-100, 5, 6, 8, END]])
    logits = torch.randn(4, VOCABULARY)
    gate = CopyGate.constant(0.3)
    found = mixed_supervised(logits, labels, TEXTS, gate)
    mixing = CopyFromMemory(TEXTS, gate, prompt_length=1)
    for step in range(4):
        ids = torch.tensor([[0, 5, 6, 8, END][: step + 1]])
        torch.testing.assert_close(mixing(ids, logits[step : step + 1])[0], found[step])
    assert mixed_supervised(logits[:0], torch.tensor([[-100, -100]]), TEXTS, gate).shape[0] == 0


def test_texts_come_whole_or_not_at_all() -> None:
    assert take_copy_texts({"other": 1}) is None
    inputs = TEXTS.inputs()
    assert torch.equal(take_copy_texts(dict(inputs)).ids, TEXTS.ids)
    inputs.pop("copy_nearest")
    with pytest.raises(ModelError, match="copy_nearest is missing"):
        take_copy_texts(inputs)


def test_a_gate_that_cannot_be_is_refused() -> None:
    for share in (0.0, 1.0, math.inf):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            CopyGate.constant(share)
    with pytest.raises(ConfigError, match=f"has {len(FEATURES)} weights"):
        CopyGate((1.0,))
