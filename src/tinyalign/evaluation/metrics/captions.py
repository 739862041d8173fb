"""BLEU, ROUGE-L and CIDEr-D, equal to the public COCO scorers when fed the same tokens.

Both come as numbers *per image*, so that an interval resamples images without counting n-grams
again: BLEU as sufficient statistics whose column sums determine the corpus score, CIDEr-D as
scores whose mean is the corpus score.

Sources: Papineni et al., ACL 2002 (BLEU, closest reference length); Vedantam et al., CVPR 2015
(CIDEr-D: clipping, Gaussian length penalty with sigma 6, factor 10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tinyalign.errors import EvaluationError

Tokens = Sequence[str]
Ngram = tuple[str, ...]
Floats = npt.NDArray[np.float64]

ORDER = 4
SIGMA = 6.0
ROUGE_BETA = 1.2


def ngrams(tokens: Tokens, order: int) -> Counter[Ngram]:
    """Counts of the n-grams of exactly `order` words."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def _check(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if len(candidates) != len(references):
        raise EvaluationError(
            f"{len(candidates)} captions but references for {len(references)} images: give one "
            "list of references for each caption."
        )
    for index, those in enumerate(references):
        if not those:
            raise EvaluationError(f"Caption {index} has no reference to be judged by.")


# --- BLEU ---------------------------------------------------------------------------------------


def bleu_statistics(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """Sufficient statistics of BLEU-4, one row an image: (n, 9) float64.

    Columns: matches of order 1-4, n-grams offered of order 1-4, closest reference length (the
    shorter of two equally close). The candidate's own length is column 4.
    """
    _check(candidates, references)
    rows = np.zeros((len(candidates), 2 * ORDER + 1))
    for row, candidate, those in zip(rows, candidates, references):
        for order in range(1, ORDER + 1):
            allowed: Counter[Ngram] = Counter()
            for reference in those:
                allowed |= ngrams(reference, order)
            row[order - 1] = sum((ngrams(candidate, order) & allowed).values())
            row[ORDER + order - 1] = max(0, len(candidate) - order + 1)
        row[-1] = min(
            (abs(len(reference) - len(candidate)), len(reference)) for reference in those
        )[1]
    return rows


def bleu(sums: Floats, order: int = ORDER) -> Floats:
    """BLEU of n-grams up to `order` from summed `bleu_statistics`: (..., 9) -> (...). In [0, 1]."""
    tiny, small = 1e-15, 1e-9  # the public scorer's guards; without them a miss divides by zero
    matches, offered = sums[..., :order], sums[..., ORDER : ORDER + order]
    precision = np.prod((matches + tiny) / (offered + small), axis=-1) ** (1 / order)
    ratio = (sums[..., ORDER] + tiny) / (sums[..., -1] + small)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


# --- ROUGE-L ------------------------------------------------------------------------------------


def rouge_l_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """ROUGE-L of each image: (n,) float64; the corpus score is their mean.

    F-score (beta 1.2) of the best precision and the best recall over the references, each from
    the longest common subsequence of words (Lin, 2004; the COCO scorer's reading of it).
    """
    _check(candidates, references)
    scores = np.zeros(len(candidates))
    for index, (candidate, those) in enumerate(zip(candidates, references)):
        # The COCO scorer splits at spaces, so that an empty caption is one empty word.
        ours = list(candidate) or [""]
        common = [_common_subsequence(ours, list(r) or [""]) for r in those]
        precision = max(common) / len(ours)
        recall = max(c / max(1, len(r)) for c, r in zip(common, those))
        if precision and recall:
            weight = ROUGE_BETA**2
            scores[index] = (1 + weight) * precision * recall / (recall + weight * precision)
    return scores


def _common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(b) + 1)
    for word in a:
        left = 0
        for column, other in enumerate(b, start=1):
            above = best[column]
            best[column] = left + 1 if word == other else max(above, best[column - 1])
            left = above
    return best[-1]


# --- CIDEr-D ------------------------------------------------------------------------------------


class DocumentFrequencies:
    """In how many images' references each n-gram occurs; the weights CIDEr-D is made of.

    Take it from the whole reference set of a split even when only part of it is scored:
    frequencies from a part give another score.
    """

    def __init__(self, references: Iterable[Sequence[Tokens]]) -> None:
        """Count over one list of tokenised references for each image."""
        self.counts: Counter[Ngram] = Counter()
        self.images = 0
        for those in references:
            self.images += 1
            seen = {g for r in those for order in range(1, ORDER + 1) for g in ngrams(r, order)}
            self.counts.update(seen)

    def weigh(self, tokens: Tokens) -> list[tuple[dict[Ngram, float], float]]:
        """For each order 1-4: tf-idf weights of the n-grams of a caption, and their L2 norm."""
        log_images = math.log(self.images)
        vectors = []
        for order in range(1, ORDER + 1):
            weights = {
                gram: count * (log_images - math.log(max(1, self.counts[gram])))
                for gram, count in ngrams(tokens, order).items()
            }
            vectors.append((weights, math.sqrt(sum(w * w for w in weights.values()))))
        return vectors


def cider_scores(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None = None,
) -> Floats:
    """CIDEr-D of each image: (n,) float64; the corpus score is their mean.

    `frequencies` default to those of `references` themselves. With a single image every weight
    is log(1) = 0 and so is the score: CIDEr needs a set.
    """
    _check(candidates, references)
    if frequencies is None:
        frequencies = DocumentFrequencies(references)
    scores = np.zeros(len(candidates))
    for index, (candidate, those) in enumerate(zip(candidates, references)):
        weighed = frequencies.weigh(candidate)
        total = sum(_similarity(weighed, candidate, r, frequencies) for r in those)
        scores[index] = 10.0 * total / len(those)
    return scores


def _similarity(
    candidate: list[tuple[dict[Ngram, float], float]],
    candidate_tokens: Tokens,
    reference_tokens: Tokens,
    frequencies: DocumentFrequencies,
) -> float:
    """Clipped cosine of one caption and one reference, averaged over orders, length-penalised."""
    total = 0.0
    for (ours, our_norm), (theirs, their_norm) in zip(
        candidate, frequencies.weigh(reference_tokens)
    ):
        product = sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs)
        norms = our_norm * their_norm
        total += product / norms if norms else product
    # The public scorer counts bigrams for the length; that is words - 1, or 0 for one word or none.
    difference = max(0, len(candidate_tokens) - 1) - max(0, len(reference_tokens) - 1)
    return total / ORDER * math.exp(-(difference**2) / (2 * SIGMA**2))
