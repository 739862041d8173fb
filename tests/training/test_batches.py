"""A step has the same samples however many processes share it; no process is left without one."""

from __future__ import annotations

from itertools import zip_longest

from hypothesis import given
from hypothesis import strategies as st

from tinyalign.training.batches import EvaluationBatches, StepBatches
from tinyalign.training.recipe import Recipe
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.trainer import SeededOrder
from tinyalign.training.workshop import Workshop

sizes = st.integers(1, 40)
few = st.integers(1, 4)


def steps(size: int, micro: int, accumulation: int, processes: int) -> list[list[int]]:
    """The positions of every step, as all processes together compute them."""
    order = SeededOrder(size, seed=3)
    shares = [
        list(StepBatches(order, micro, accumulation, processes, index))
        for index in range(processes)
    ]
    lengths = {len(share) for share in shares}
    assert lengths == {len(StepBatches(order, micro, accumulation, processes))}
    found = []
    for start in range(0, lengths.pop(), accumulation):
        turns = zip_longest(*(share[start : start + accumulation] for share in shares))
        found.append([p for turn in turns for batch in turn for p in batch if p >= 0])
    return found


@given(size=sizes, micro=few, accumulation=few, processes=few)
def test_the_samples_of_a_step_hang_on_its_size_alone(size, micro, accumulation, processes) -> None:
    alone = steps(size, micro * accumulation * processes, 1, 1)
    assert steps(size, micro, accumulation, processes) == alone
    assert [p for step in alone for p in step] == list(SeededOrder(size, seed=3))


@given(size=sizes, micro=few, accumulation=few, processes=few)
def test_every_micro_batch_has_something_to_compute(size, micro, accumulation, processes) -> None:
    for index in range(processes):
        batches = StepBatches(SeededOrder(size, 0), micro, accumulation, processes, index)
        assert all(1 <= len(batch) <= micro for batch in batches)


@given(size=sizes, batch=few, processes=few)
def test_held_out_batches_are_shared_out_and_joined_in_order(size, batch, processes) -> None:
    shares = [EvaluationBatches(size, batch, processes, index) for index in range(processes)]
    assert len({len(list(share)) for share in shares}) == 1
    joined = shares[0].joined([list(share) for share in shares])
    assert [position for part in joined for position in part] == list(range(size))


def test_an_idle_item_has_nothing_to_learn_from(recipe: Recipe) -> None:
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    dataset = Workshop(recipe, folder, "pretrain").dataset(recipe.data.pretrain)
    item, idle = dataset[3], dataset[~3]
    assert idle["input_ids"] == item["input_ids"]
    assert any(label != -100 for label in item["labels"])
    assert set(idle["labels"]) == {-100}


def test_the_order_is_told_the_epoch() -> None:
    batches = StepBatches(SeededOrder(10, seed=0), 5)
    first = list(batches)
    batches.sampler.set_epoch(1)
    assert list(batches) != first
