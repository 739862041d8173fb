"""Items without their memories, and losses side by side."""

from __future__ import annotations

import pytest
import torch

from tinyalign.data.collator import Collator
from tinyalign.training.loop.held_out import WithoutMemory, mean_loss, side_by_side

MEMORY = 9


def test_memory_tokens_and_values_leave_a_batch_and_nothing_else_does() -> None:
    items = [
        {
            "input_ids": [7, 7, MEMORY, MEMORY, 1, 2],
            "labels": [-100, -100, -100, -100, 1, 2],
            "memory_values": torch.ones(2, 3),
            "memory_mask": torch.ones(2, dtype=torch.bool),
            "vision_features": [torch.ones(2, 4)],
            "index": 5,
        },
        {"input_ids": [3, 4, 5], "labels": [-100, 4, 5], "index": 6},
    ]
    batch = WithoutMemory(Collator(0), MEMORY)(items)
    assert batch["input_ids"].tolist() == [[7, 7, 1, 2], [3, 4, 5, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 1, 2], [-100, 4, 5, -100]]
    assert batch["n_supervised"].tolist() == [2, 2]
    assert batch["attention_mask"].sum().item() == 7
    assert batch["vision_features"].shape == (1, 2, 4)
    assert not [name for name in batch if name.startswith("memory")]


def test_losses_are_weighed_by_their_tokens() -> None:
    rows = [{"id": "a", "loss_sum": 6.0, "tokens": 2}, {"id": "b", "loss_sum": 2.0, "tokens": 6}]
    without = [{"id": "a", "loss_sum": 9.0, "tokens": 2}, {"id": "b", "loss_sum": 3.0, "tokens": 6}]
    both = side_by_side(rows, without)
    assert mean_loss(both) == 1.0
    assert mean_loss(both, "loss_sum_without_memory") == pytest.approx(1.5)
