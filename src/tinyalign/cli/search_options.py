"""How a bank is searched, as options: what `bank search`, `ask` and `evaluate` share."""

from __future__ import annotations

from dataclasses import dataclass

from tinyalign.vocabulary import RECALL, Engine


@dataclass(kw_only=True)
class SearchOptions:
    """Which search finds the memories."""

    engine: Engine = "auto"
    """"exact", "ivf" (approximate, for very large banks), or by the bank's size."""
    recall: float = RECALL
    """Share of the true nearest that an approximate search must find."""


@dataclass(kw_only=True)
class AnswerOptions(SearchOptions):
    """How an answer is found, and what of it comes from memory: `ask` and `evaluate` share it."""

    copy: float | None = None
    """Share of each word's probability that is copied from the texts of the neighbours. By default
    the model's own gate decides, if it has one; 0 copies nothing."""
    beams: int = 1
    """Beams of a beam search; 1 is greedy."""
    best_of: int = 1
    """Answers to choose among, by what the neighbours' texts agree with most; it needs a bank and
    takes as many short generations."""
