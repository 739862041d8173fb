"""What a query's neighbours agree on: which of their texts speaks best for all of them.

One nearest neighbour is a weak witness. Of the texts of many neighbours, the one most like all
the others (Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning",
arXiv 1505.04467) is a far better caption; of short answers it is the weighted vote. Two texts are
as like as their tf-idf vectors of n-grams (n = 1 to 4), with CIDEr-D's penalty for a difference
in length; the longer orders count only where one of the two has as many words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

ORDER = 4
SIGMA = 6.0
MOST_WORDS = 64
"""Words of a text that are compared; the rest of a longer one is left out."""
COUNTED = 10_000
"""So many texts are enough to count how common an n-gram is."""
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_PRIME = np.uint64(1_099_511_628_211)


class NgramFrequencies:
    """In how many texts of a corpus each n-gram occurs, by its 64-bit hash."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Count in `texts`, or in an even sample of them where they are very many."""
        counted = texts[:: max(1, -(-len(texts) // COUNTED))]
        grams = [np.unique(np.concatenate(ngram_hashes(text))) for text in counted]
        whole = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
        self.texts = len(counted)
        self.hashes, self.counts = np.unique(whole, return_counts=True)

    def weights(self, hashes: Hashes) -> Floats:
        """idf of n-grams: log of texts over texts that have it; of a new one, of being in one."""
        if not self.texts:
            return np.ones(len(hashes))
        at = np.searchsorted(self.hashes, hashes).clip(max=max(0, len(self.hashes) - 1))
        known = self.hashes[at] == hashes if len(self.hashes) else np.zeros(len(hashes), bool)
        counts = np.where(known, self.counts[at] if len(self.counts) else 1, 1)
        return np.log((1.0 + self.texts) / counts)


def similarities(texts: Sequence[str], frequencies: NgramFrequencies) -> Floats:
    """(n, n): how like each text is to each other one; 1 on the diagonal, 0 for a wordless text."""
    total = np.zeros((len(texts), len(texts)))
    if not len(texts):
        return total
    hashed = [ngram_hashes(text) for text in texts]
    lengths = np.array([len(grams[0]) for grams in hashed])
    for order in range(ORDER):
        vectors = _unit_vectors([grams[order] for grams in hashed], frequencies)
        total += vectors @ vectors.T
    orders = np.clip(np.maximum(lengths[:, None], lengths[None]), 1, ORDER)
    gap = lengths[:, None] - lengths[None]
    return total / orders * np.exp(-(gap**2) / (2 * SIGMA**2))


def votes(alike: Floats, scores: Sequence[float], temperature: float) -> Floats:
    """(n,): how far the others, weighed by exp(temperature x score), agree with each text.

    alike: from `similarities`; scores: the texts' own similarities to the query.
    """
    return alike @ weights(scores, temperature)


def weights(scores: Sequence[float], temperature: float) -> Floats:
    """Softmax of temperature x score."""
    logits = temperature * np.asarray(scores, dtype=np.float64)
    shares = np.exp(logits - logits.max(initial=0.0))
    return shares / max(shares.sum(), 1e-12)


def spokesmen(alike: Floats, scores: Sequence[float], temperature: float, k: int) -> list[int]:
    """The k texts that speak best for all, the first one for most of them.

    The first is the one that the others agree with most; each further one adds most of what is
    not said yet (greedy facility location). Where nothing is left to add, the nearest follow.
    """
    share = weights(scores, temperature)
    chosen: list[int] = []
    said = np.zeros(len(share))
    for _ in range(min(k, len(share))):
        gains = np.maximum(alike - said, 0.0) @ share
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        said = np.maximum(said, alike[chosen[-1]])
    return chosen


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


@lru_cache(maxsize=1 << 18)
def ngram_hashes(text: str) -> tuple[Hashes, ...]:
    """Hashes of the n-grams of a text, for n = 1 to 4; as many as it has of each."""
    ids = np.array([_word_hash(word) for word in words(text)[:MOST_WORDS]], dtype=np.uint64)
    found, grams = [ids], ids
    with np.errstate(over="ignore"):
        for order in range(1, ORDER):
            grams = (grams[:-1] * _PRIME) ^ (ids[order:] + np.uint64(order))
            found.append(grams)
    return tuple(found)


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    value = 14_695_981_039_346_656_037  # FNV-1a, the same in every process
    for byte in word.encode():
        value = ((value ^ byte) * int(_PRIME)) & 0xFFFF_FFFF_FFFF_FFFF
    return value


def _unit_vectors(grams: Iterable[Hashes], frequencies: NgramFrequencies) -> Floats:
    """(n, columns): tf-idf of each text's n-grams, at unit length; zeros for a text without."""
    grams = list(grams)
    found, where = np.unique(np.concatenate(grams), return_inverse=True)
    rows = np.repeat(np.arange(len(grams)), [len(one) for one in grams])
    size = len(grams) * len(found)
    counts = np.bincount(rows * len(found) + where, minlength=size)[:size]
    vectors = counts.reshape(len(grams), len(found)) * frequencies.weights(found)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
