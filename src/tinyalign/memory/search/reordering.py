"""Neighbour tables in the order of a ranking, and the ranking chosen on training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinyalign.data.sample import Sample
from tinyalign.log import logger, progress
from tinyalign.memory.search.consensus import Floats, votes
from tinyalign.memory.search.neighbours import NeighbourTable
from tinyalign.memory.search.ranker import Ranker

SIZES = (10, 20, 50, 100, 150)
"""Numbers of neighbours that are tried."""
TEMPERATURES = (0.0, 5.0, 10.0, 20.0, 40.0)
"""Temperatures that are tried."""
CHOSEN_ON = 500
"""Samples that a choice is made on."""


def reordered(table: NeighbourTable, ranker: Ranker, k: int) -> NeighbourTable:
    """The table with each sample's k memories first, by the ranker; the others by similarity."""
    indices, scores = table.indices.clone(), table.scores.clone()
    with progress("Ordering neighbours", len(table)) as advance:
        for row in range(len(table)):
            answers, found = _said(table, ranker, row)
            first = ranker.first(answers, found, k)
            order = [*first, *(i for i in range(len(answers)) if i not in set(first))]
            indices[row, : len(order)] = table.indices[row, order]
            scores[row, : len(order)] = table.scores[row, order]
            advance(1)
    return replace(table, indices=indices, scores=scores)


def chosen_ranker(
    ranker: Ranker, table: NeighbourTable, samples: Sequence[Sample], seed: int = 0
) -> Ranker:
    """The ranker with how many neighbours, and the temperature, that serve these samples best.

    A choice is good as far as the answer that the neighbours agree on is like the right ones, on
    average over a few hundred samples; of short answers this is the share that is right. The
    table must leave out the samples' own entries.
    """
    rows = np.random.default_rng(seed).permutation(len(table))[:CHOSEN_ON].tolist()
    sizes = sorted({min(n, table.k) for n in SIZES})
    totals, nearest, judged = np.zeros((len(sizes), len(TEMPERATURES))), 0.0, 0
    for row in rows:
        answers, scores = _said(table, ranker, row)
        right = samples[row].judged_by
        if not answers or not right:
            continue
        alike = ranker.alike([*answers, *right])
        good = alike[: len(answers), len(answers) :].mean(axis=1)
        totals += _grid(alike, good, scores, sizes)
        nearest, judged = nearest + float(good[0]), judged + 1
    if not judged:
        return ranker
    size, temperature = np.unravel_index(totals.argmax(), totals.shape)
    ranking = replace(ranker.ranking, neighbours=sizes[size], temperature=TEMPERATURES[temperature])
    logger.info(
        "neighbours: what %d agree on at temperature %g is %.3f like what is right, the nearest "
        "alone %.3f (%d training samples, own fold left out)", ranking.neighbours,
        ranking.temperature, float(totals.max()) / judged, nearest / judged, judged,
    )  # fmt: skip
    return ranker.with_ranking(ranking)


def _grid(alike: Floats, good: Floats, scores: list[float], sizes: Sequence[int]) -> Floats:
    """(sizes, temperatures): how good the answer is that each choice comes to, for one query."""
    found = np.zeros((len(sizes), len(TEMPERATURES)))
    for i, n in enumerate(sizes):
        for j, temperature in enumerate(TEMPERATURES):
            n_here = min(n, len(scores))
            voted = votes(alike[:n_here, :n_here], scores[:n_here], temperature)
            found[i, j] = good[int(voted.argmax())]
    return found


def _said(table: NeighbourTable, ranker: Ranker, row: int) -> tuple[list[str], list[float]]:
    """Answers of a sample's neighbours, and their similarities, by similarity."""
    rows = [i for i in table.indices[row].tolist() if i >= 0]
    entries = ranker.bank.entries.at(rows)
    return [entries[i].answer for i in rows], table.scores[row, : len(rows)].tolist()
