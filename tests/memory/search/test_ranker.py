"""Ordering neighbours of a bank, and what they agree on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.changes import remove_entries
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.ranking import Ranking
from tinyalign.model.protocols import Neighbourhood

ANSWERS = ["a cat sits", "a dog runs on grass", "a brown dog runs on grass", "a dog runs"]
SCORES = [0.9, 0.5, 0.5, 0.5]


def test_by_similarity_the_nearest_come_first(bank) -> None:
    ranker = Ranker(bank, Ranking("similarity", 100))
    assert ranker.first(ANSWERS, SCORES, 2) == [0, 1]
    assert ranker.first([], [], 3) == []


def test_by_consensus_those_that_speak_for_the_others_do(bank) -> None:
    ranker = Ranker(bank, Ranking("consensus", 100, 1.0))
    first = ranker.first(ANSWERS, SCORES, 2)
    assert first[0] in (1, 2, 3)
    assert first[1] == 0  # what the first does not say
    assert ranker.agreed(ANSWERS, SCORES) == ANSWERS[first[0]]
    assert ranker.first(ANSWERS[:1], SCORES[:1], 2) == [0]


def test_only_so_many_neighbours_are_listened_to(bank) -> None:
    assert Ranker(bank, Ranking("consensus", 1, 1.0)).first(ANSWERS, SCORES, 2) == [0]


def test_what_was_found_to_copy_from_has_no_vote(bank) -> None:
    ranker = Ranker(bank, Ranking("consensus", 1, 1.0))
    assert ranker.agreed(ANSWERS, SCORES) == ANSWERS[0]
    near = Neighbourhood([0, 1, 2, 3], ANSWERS, SCORES)
    assert ranker.best(["a dog runs on grass", "a cat sits down"], near) == 1


def test_the_best_candidate_is_the_one_that_neighbours_agree_with(bank) -> None:
    ranker = Ranker(bank, Ranking("similarity", 100, 1.0))
    near = Neighbourhood([0, 1, 2], ANSWERS[1:], SCORES[1:])
    assert ranker.best(["two cats", "a dog runs on a lawn", "the sea"], near) == 1
    assert ranker.best(["two cats", "the sea"], Neighbourhood()) == 0


def test_nearer_texts_may_say_more_and_by_consensus_those_with_votes(bank) -> None:
    by_similarity = Ranker(bank, Ranking("similarity", 100, 5.0)).shares(ANSWERS, SCORES)
    expected = torch.softmax(5.0 * torch.tensor(SCORES), dim=0)
    torch.testing.assert_close(torch.tensor(by_similarity), expected)
    by_votes = Ranker(bank, Ranking("consensus", 100, 1.0)).shares(ANSWERS, SCORES)
    assert sum(by_votes) == pytest.approx(1.0)
    assert ANSWERS[by_votes.index(max(by_votes))].startswith("a")
    assert by_votes[0] == min(by_votes)  # the nearest, with which nobody agrees
    assert Ranker(bank, Ranking("consensus")).shares([], []) == []


def test_without_neighbours_there_is_no_answer(bank) -> None:
    assert Ranker(bank, Ranking()).agreed([], []) == ""


def test_the_words_of_a_changed_bank_are_counted_anew(bank, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    shutil.copytree(bank.folder, folder)
    mine = MemoryBank.open(folder)
    ranker = Ranker(mine, Ranking())
    before = ranker.frequencies
    assert ranker.frequencies is before
    remove_entries(folder, ids=mine.ids[:3])
    mine.refresh()
    assert ranker.frequencies.texts == before.texts - 3
    assert ranker.with_ranking(Ranking("consensus")).frequencies is ranker.frequencies
