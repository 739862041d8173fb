"""WUPS: accuracy of sets of words that forgives near ones (Malinowski & Fritz, NeurIPS 2014).

    WUPS(A, T) = min( prod over a in A of max over t in T of m(a, t),
                      prod over t in T of max over a in A of m(a, t) )

where m is Wu-Palmer similarity of the nearest senses, a tenth of it below the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod

from tinyalign.evaluation.metrics.wordnet import WordNet

Measure = Callable[[str, str], float]
"""How alike two words are, in [0, 1]."""

BELOW = 0.1
"""What a similarity below the threshold is multiplied by."""


def set_score(truth: str, answer: str, measure: Measure) -> float:
    """Score of one comma-separated answer against another, in [0, 1]."""
    theirs = [item.strip() for item in truth.split(",")]
    ours = [item.strip() for item in answer.split(",")]
    forward = prod(max(measure(t, a) for a in ours) for t in theirs)
    backward = prod(max(measure(a, t) for t in theirs) for a in ours)
    return float(min(forward, backward))


def exact(a: str, b: str) -> float:
    """1 for equal words: `set_score` is then accuracy."""
    return float(a == b)


def wups(wordnet: WordNet, threshold: float) -> Measure:
    """The measure of WUPS at a threshold: 0.9 asks for near synonyms, 0.0 takes any relation."""

    @lru_cache(maxsize=1 << 16)
    def measure(a: str, b: str) -> float:
        if a == b:
            return 1.0
        best = wordnet.similarity(a, b)
        return best * (BELOW if best < threshold else 1.0)

    return measure
