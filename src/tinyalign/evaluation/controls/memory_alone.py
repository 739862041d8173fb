"""What memories answer by themselves: what a model must beat to be more than a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinyalign.evaluation.results import Prediction
from tinyalign.memory.bank.bank import MemoryBank


def memory_alone(predictions: Sequence[Prediction], bank: MemoryBank) -> list[Prediction]:
    """`predictions` with the answer of the most similar memory in place of the model's.

    An entry's answer is its text without the instruction; "" where nothing was retrieved. Scores
    and losses, which were the model's, are left out. bank: the one they were made with.
    """
    nearest = {name for one in predictions for name in one.memory_ids[:1]}
    entries = bank.entries.at(bank.rows_of(nearest)).values()
    said = {one.id: one.text.removeprefix(one.instruction).strip() for one in entries}
    return [
        replace(
            one,
            prediction=said.get(one.memory_ids[0], "") if one.memory_ids else "",
            loss_sum=0.0,
            supervised_tokens=0,
            scores={},
        )
        for one in predictions
    ]
