"""Neighbour tables by consensus, and how neighbours are weighed, chosen on training samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tinyalign.data.images import image_hash, load_image
from tinyalign.data.sample import Message
from tinyalign.memory.search.neighbours import NeighbourTable
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.ranking import Ranking
from tinyalign.memory.search.reordering import TEMPERATURES, chosen_ranker, reordered


@pytest.fixture(scope="module")
def table(bank, samples, vision, perceiver) -> NeighbourTable:
    features = vision.encode([load_image(sample.images[0]) for sample in samples])
    queries = perceiver.keys(features, [sample.instruction for sample in samples])
    hashes = [image_hash(sample.images[0]) for sample in samples]
    return NeighbourTable.build(bank, queries, [s.id for s in samples], hashes, k=8)


def test_memories_come_first_and_nobody_is_lost(bank, table) -> None:
    ranker = Ranker(bank, Ranking("consensus", 8, 5.0))
    found = reordered(table, ranker, k=3)
    assert torch.equal(found.indices.sort(dim=1).values, table.indices.sort(dim=1).values)
    assert not torch.equal(found.indices, table.indices)
    scores = {
        (row, i): s
        for row in range(len(table))
        for i, s in zip(table.indices[row].tolist(), table.scores[row].tolist())
    }
    for row in range(len(found)):
        rows = found.indices[row].tolist()
        assert found.scores[row].tolist() == [scores[row, i] for i in rows]
        assert (
            sorted(found.scores[row, 3:].tolist(), reverse=True) == found.scores[row, 3:].tolist()
        )
        answers = [bank.entry(i).answer for i in table.indices[row].tolist()]
        first = ranker.first(answers, table.scores[row].tolist(), 3)
        assert rows[:3] == [table.indices[row].tolist()[i] for i in first]


def test_by_similarity_nothing_moves(bank, table) -> None:
    found = reordered(table, Ranker(bank, Ranking("similarity", 8)), k=3)
    assert torch.equal(found.indices, table.indices)


def test_what_serves_the_samples_best_is_chosen(bank, table, samples) -> None:
    """No other choice agrees on answers more like the right ones."""
    nearest = [bank.entry(int(row)).answer for row in table.indices[:, 0]]
    told = [
        replace(one, messages=(one.messages[0], Message("assistant", text)))
        for one, text in zip(samples, nearest)
    ]
    ranker = Ranker(bank, Ranking("consensus", 8))

    def goodness(ranking: Ranking) -> float:
        other = ranker.with_ranking(ranking)
        total = 0.0
        for row, right in enumerate(nearest):
            rows = table.indices[row, : ranking.neighbours].tolist()
            near = [bank.entry(i).answer for i in rows]
            said = other.agreed(near, table.scores[row, : len(near)].tolist())
            total += float(other.alike([said, right])[0, 1])
        return total

    chosen = chosen_ranker(ranker, table, told).ranking
    assert chosen.order == "consensus"
    others = [Ranking("consensus", 8, temperature) for temperature in TEMPERATURES]
    assert all(goodness(chosen) >= goodness(one) - 1e-9 for one in others)
    assert goodness(chosen) > min(map(goodness, others))


def test_without_a_right_answer_the_choice_stays_open(bank, table, samples) -> None:
    silent = [replace(one, messages=one.messages[:1]) for one in samples]
    ranker = Ranker(bank, Ranking("consensus", 8, 3.0))
    assert chosen_ranker(ranker, table, silent).ranking == ranker.ranking
