"""Plans of a step: every sample once, balanced or alike, within the budget, always the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.data.packing import cost, groups_needed, plan_step
from tinyalign.errors import DataError

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)
LAYOUTS = st.sampled_from(["packed", "padded"])


def costs(groups, lengths, layout):
    return [cost([lengths[i] for i in group], layout) for group in groups]


@given(lengths=LENGTHS, n_groups=st.integers(1, 12), layout=LAYOUTS)
def test_every_sample_is_in_one_group_and_the_largest_group_is_first(lengths, n_groups, layout):
    groups = plan_step(lengths, n_groups, layout)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert len(groups) == n_groups
    assert all(group == sorted(group) for group in groups)
    found = costs(groups, lengths, layout)
    assert found == sorted(found, reverse=True)
    assert sum(not group for group in groups) == max(0, n_groups - len(lengths))


@given(lengths=LENGTHS, budget=st.integers(1, 900), more=st.integers(0, 3), layout=LAYOUTS)
def test_groups_stay_within_the_budget_but_for_a_sample_that_is_longer(
    lengths, budget, more, layout
):
    n_groups = groups_needed(lengths, layout, budget) + more
    groups = plan_step(lengths, n_groups, layout, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert len(groups) == n_groups
    for group, tokens in zip(groups, costs(groups, lengths, layout)):
        assert tokens <= budget or len(group) == 1


@given(lengths=LENGTHS, n_groups=st.integers(1, 8))
def test_packed_groups_differ_by_no_more_than_one_sample(lengths, n_groups):
    found = costs(plan_step(lengths, n_groups, "packed"), lengths, "packed")
    assert found[0] - found[-1] <= max(lengths)


@given(lengths=LENGTHS, n_groups=st.integers(1, 8))
def test_padded_groups_hold_samples_of_similar_length(lengths, n_groups):
    groups = [[lengths[i] for i in g] for g in plan_step(lengths, n_groups, "padded") if g]
    spans = sorted((min(group), max(group)) for group in groups)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_the_fullest_fit_is_chosen():
    # 60 goes beside 40 (full), not beside 30; 30 + 70 then fill the second group.
    assert plan_step([40, 60, 70, 30], 2, "packed", budget=100) == [[0, 1], [2, 3]]
    assert groups_needed([40, 60, 70, 30], "packed", 100) == 2
    assert groups_needed([40, 60, 70, 30], "padded", 100) == 3


def test_too_few_groups_for_the_budget_are_refused():
    with pytest.raises(DataError, match="needs 3 micro-batches of at most 50"):
        plan_step([30, 30, 30], 2, "packed", budget=50)
