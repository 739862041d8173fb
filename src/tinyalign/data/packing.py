"""Which samples of a step go into which micro-batch: balanced, within a budget, nothing random.

Lengths and costs are in tokens. A plan is a list of groups; a group is a list of positions within
the step, in ascending order. The most expensive group comes first.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from tinyalign.errors import DataError

Layout = Literal["packed", "padded"]
"""A micro-batch is one row of samples without padding, or a row a sample, padded to the longest."""

Groups = list[list[int]]


def cost(lengths: Sequence[int], layout: Layout) -> int:
    """Tokens that a micro-batch of samples of these lengths computes, padding included."""
    if not lengths:
        return 0
    return sum(lengths) if layout == "packed" else len(lengths) * max(lengths)


def plan_step(
    lengths: Sequence[int], n_groups: int, layout: Layout, budget: int | None = None
) -> Groups:
    """The samples of a step in `n_groups` groups, none of them empty where there are enough.

    Packed, the groups have nearly the same number of tokens; padded, they hold samples of similar
    length. Where a group would cost more than `budget`, they are filled up to it one by one
    instead (best fit of the longest first). A sample longer than the budget has its group alone.
    Raises DataError if n_groups cannot hold the budget: see `groups_needed`.
    """
    groups = _balanced(lengths, n_groups) if layout == "packed" else _alike(lengths, n_groups)
    if budget is not None and _largest(groups, lengths, layout) > budget:
        groups = fit(lengths, layout, budget)
        if len(groups) > n_groups:
            raise DataError(
                f"a step of {len(lengths)} samples and {sum(lengths)} tokens needs {len(groups)} "
                f"micro-batches of at most {budget} tokens, {n_groups} were planned"
            )
        _spread(groups, n_groups)
    groups = [sorted(group) for group in groups]
    return sorted(groups, key=lambda group: (-_cost(group, lengths, layout), group[:1]))


def groups_needed(lengths: Sequence[int], layout: Layout, budget: int) -> int:
    """Groups of at most `budget` tokens that `plan_step` needs."""
    return len(fit(lengths, layout, budget))


def fit(lengths: Sequence[int], layout: Layout, budget: int) -> Groups:
    """As few groups within the budget as a greedy pass from the longest sample finds."""
    return _best_fit(lengths, budget) if layout == "packed" else _cut(lengths, budget)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def _balanced(lengths: Sequence[int], n_groups: int) -> Groups:
    """Each sample, the longest first, to the group with the fewest tokens."""
    groups: Groups = [[] for _ in range(n_groups)]
    heap = [(0, number) for number in range(n_groups)]
    for i in _longest_first(lengths):
        tokens, number = heap[0]
        groups[number].append(i)
        heapq.heapreplace(heap, (tokens + lengths[i], number))
    return groups


def _alike(lengths: Sequence[int], n_groups: int) -> Groups:
    """Sorted by length, cut into groups of the same number of samples."""
    order = _longest_first(lengths)
    bounds = [len(order) * i // n_groups for i in range(n_groups + 1)]
    return [order[start:end] for start, end in pairwise(bounds)]


def _best_fit(lengths: Sequence[int], budget: int) -> Groups:
    """Each sample, the longest first, to the group that it leaves the least room in."""
    groups: Groups = []
    rooms: list[tuple[int, int]] = []  # (tokens left, group), sorted
    for i in _longest_first(lengths):
        place = bisect_left(rooms, (lengths[i], -1))
        if place == len(rooms):
            groups.append([i])
            left, number = budget - lengths[i], len(groups) - 1
        else:
            left, number = rooms.pop(place)
            groups[number].append(i)
            left -= lengths[i]
        rooms.insert(bisect_left(rooms, (left, number)), (left, number))
    return groups


def _cut(lengths: Sequence[int], budget: int) -> Groups:
    """Sorted by length, a new group wherever one more padded row would go over the budget."""
    groups: Groups = []
    for i in _longest_first(lengths):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _spread(groups: Groups, n_groups: int) -> None:
    """Split the groups of most samples until there are n_groups, as far as there are samples."""
    while len(groups) < n_groups:
        fullest = max(groups, key=len)
        half = len(fullest) // 2
        groups.append(fullest[half:] if half else [])
        if half:
            del fullest[half:]


def _cost(group: Sequence[int], lengths: Sequence[int], layout: Layout) -> int:
    return cost([lengths[i] for i in group], layout)


def _largest(groups: Groups, lengths: Sequence[int], layout: Layout) -> int:
    return max(_cost(group, lengths, layout) for group in groups)
