"""Orders a query's neighbours by a ranking, and says what they agree on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.search.consensus import (
    COUNTED,
    Floats,
    NgramFrequencies,
    similarities,
    spokesmen,
    votes,
    weights,
)
from tinyalign.memory.search.ranking import Ranking
from tinyalign.model.protocols import Neighbourhood

AGREEMENT = 30.0
"""How much more those say that others agree with: of 0, 10 and 30 the best on training photos."""


class Ranker:
    """Orders the neighbours of queries to one bank, by what their texts agree on."""

    def __init__(self, bank: MemoryBank, ranking: Ranking) -> None:
        self.bank, self.ranking = bank, ranking
        self._frequencies: NgramFrequencies | None = None
        self._counted: str | None = None

    def with_ranking(self, ranking: Ranking) -> Ranker:
        """The same bank, whose words are counted but once, in another order."""
        other = Ranker(self.bank, ranking)
        other._frequencies, other._counted = self._frequencies, self._counted
        return other

    @property
    def frequencies(self) -> NgramFrequencies:
        """How common the n-grams of the bank's answers are; of a changed bank counted anew."""
        if self._frequencies is None or self._counted != self.bank.hash:
            live = self.bank.live
            rows = live[:: max(1, -(-len(live) // COUNTED))]
            entries = self.bank.entries.at(rows.tolist())
            self._frequencies = NgramFrequencies([entry.answer for entry in entries.values()])
            self._counted = self.bank.hash
        return self._frequencies

    def alike(self, answers: Sequence[str]) -> Floats:
        """(n, n): how like each answer is to each other one."""
        return similarities(answers, self.frequencies)

    def first(self, answers: Sequence[str], scores: Sequence[float], k: int) -> list[int]:
        """Which k of these, the neighbours of a query by similarity, are its memories."""
        if self.ranking.order == "similarity" or len(answers) <= 1:
            return list(range(min(k, len(answers))))
        n = self._heard(len(answers))
        answers, scores = answers[:n], scores[:n]
        return spokesmen(self.alike(answers), scores, self.ranking.temperature, k)

    def _heard(self, n: int) -> int:
        """How many of n neighbours are listened to: more may have been found, to copy from."""
        return min(n, self.ranking.neighbours or n)

    def best(self, candidates: Sequence[str], near: Neighbourhood) -> int:
        """Which candidate the neighbours agree with most; the first one where there are none."""
        if not near.texts:
            return 0
        n = self._heard(len(near.texts))
        alike = self.alike([*candidates, *near.texts[:n]])[: len(candidates), len(candidates) :]
        return int(votes(alike, near.scores[:n], self.ranking.temperature).argmax())

    def shares(self, answers: Sequence[str], scores: Sequence[float]) -> list[float]:
        """How much each of these may say, summing to 1: exp(temperature x similarity).

        By consensus times exp(`AGREEMENT` x (its votes / the most votes - 1)): those that the
        others agree with say most.
        """
        if not answers:
            return []
        share = weights(scores, self.ranking.temperature)
        if self.ranking.order == "consensus":
            found = votes(self.alike(answers), scores, self.ranking.temperature)
            share = share * np.exp(AGREEMENT * (found / max(found.max(), 1e-12) - 1.0))
        return (share / share.sum()).tolist()

    def agreed(self, answers: Sequence[str], scores: Sequence[float]) -> str:
        """The answer that the neighbours agree on most; "" of none. Ties: the nearest."""
        if not answers:
            return ""
        n = self._heard(len(answers))
        found = votes(self.alike(answers[:n]), scores[:n], self.ranking.temperature)
        return answers[int(found.argmax())]
