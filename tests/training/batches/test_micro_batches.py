"""The samples of a step are those that order and batch size decide, however they are shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.training.batches.micro_batches import (
    FILLER,
    Items,
    MicroBatches,
    Place,
    SeededOrder,
    Split,
    accumulation_for,
)

LAYOUTS = st.sampled_from(["packed", "padded"])


def plans(lengths, split, epoch=0, seed=3):
    """What each process gets."""
    found = []
    for rank in range(split.processes):
        plan = MicroBatches(SeededOrder(len(lengths), seed), lengths, split, rank)
        plan.set_epoch(epoch)
        batches = list(plan)
        assert len(batches) == len(plan)
        found.append(batches)
    return found


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    batch_size=st.integers(1, 16),
    accumulation=st.integers(1, 4),
    processes=st.integers(1, 3),
    layout=LAYOUTS,
    budget=st.sampled_from([None, 250]),
)
def test_every_step_has_the_samples_of_the_order(
    lengths, batch_size, accumulation, processes, layout, budget
):
    split = Split(layout, batch_size, accumulation, processes, budget)
    order = SeededOrder(len(lengths), 3)
    needed = accumulation_for(order, lengths, split, epochs=2)
    split = Split(layout, batch_size, needed, processes, budget)
    order.set_epoch(1)
    wanted = list(order)
    by_process = plans(lengths, split, epoch=1)
    counts = {len(batches) for batches in by_process}
    assert len(counts) == 1  # no process waits for another
    assert all(batch for batches in by_process for batch in batches)
    for step, start in enumerate(range(0, len(wanted), batch_size)):
        first = step * split.accumulation
        places = [
            place
            for batches in by_process
            for batch in batches[first : first + split.accumulation]
            for place in batch
            if place.slot != FILLER
        ]
        expected = wanted[start : start + batch_size]
        assert sorted(places) == [Place(slot, p) for slot, p in enumerate(expected)]


def test_processes_compute_about_the_same_at_the_same_time():
    lengths = [10 * (i % 7 + 1) for i in range(64)]
    one, other = plans(lengths, Split("packed", 16, accumulation=2, processes=2))
    for mine, yours in zip(one, other):
        tokens = [sum(lengths[place.position] for place in batch) for batch in (mine, yours)]
        assert abs(tokens[0] - tokens[1]) <= 20


def test_the_largest_micro_batch_of_all_epochs_is_found():
    lengths = [(i * 37) % 101 + 1 for i in range(50)]
    split = Split("packed", 8, accumulation=2)
    seen = []
    for epoch in range(3):
        (batches,) = plans(lengths, split, epoch)
        seen += [sum(lengths[place.position] for place in batch) for batch in batches]
    places, tokens = MicroBatches(SeededOrder(50, 3), lengths, split).largest(3)
    assert tokens == max(seen)
    assert sum(lengths[place.position] for place in places) == tokens


def test_a_filler_teaches_nothing():
    data = [{"input_ids": [4, 5], "labels": [-100, 5]}]
    split = Split("packed", 2, processes=2)
    by_process = plans([2, 2, 2], split)
    assert [batch[-1][0].slot for batch in by_process] == [0, FILLER]
    assert Items(data)[Place(FILLER, 0)]["labels"] == [-100, -100]
    assert Items(data)[Place(1, 0)] == {**data[0], "slot": 1}


def test_what_a_micro_batch_needs_is_asked_for_before_its_items_are_read():
    happened = []

    class Data(list):
        def will_need(self, positions):
            happened.append(("needs", positions))

        def __getitem__(self, position):
            happened.append(("reads", position))
            return {"labels": [5]}

    read = Items(Data()).__getitems__([Place(0, 7), Place(1, 3)])
    assert happened == [("needs", [7, 3]), ("reads", 7), ("reads", 3)]
    assert read == [{"labels": [5], "slot": 0}, {"labels": [5], "slot": 1}]


@pytest.mark.parametrize(("budget", "accumulation"), [(None, 1), (100, 2), (50, 4)])
def test_a_budget_decides_the_accumulation(budget, accumulation):
    split = Split("packed", 8, processes=2, budget=budget)
    assert accumulation_for(SeededOrder(32, 0), [50] * 32, split, 1) == (accumulation)
