"""The held-out loss with memory and without, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


class WithoutMemory:
    """A collator of the same items with their memories taken away.

    Memory placeholders leave the sequence, as they do when a model runs without a bank; the rest
    of it, and what is supervised, stays as it is.
    """

    def __init__(
        self, collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]], token_id: int
    ) -> None:
        """token_id: of the memory placeholder."""
        self.collator, self.token_id = collator, token_id

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self.collator([self._without(item) for item in items])

    def _without(self, item: Mapping[str, Any]) -> dict[str, Any]:
        kept = torch.as_tensor(item["input_ids"]) != self.token_id
        plain = {name: value for name, value in item.items() if not name.startswith("memory_")}
        for name in ("input_ids", "labels", "attention_mask"):
            if plain.get(name) is not None:
                plain[name] = torch.as_tensor(plain[name])[kept]
        return plain


def mean_loss(rows: Sequence[Mapping[str, Any]], name: str = "loss_sum") -> float:
    """Nats a supervised token, over all rows."""
    return sum(row[name] for row in rows) / max(1, sum(row["tokens"] for row in rows))


def side_by_side(
    rows: Sequence[dict[str, Any]], without: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows with their loss without memory beside the loss with it."""
    return [
        {**row, "loss_sum_without_memory": other["loss_sum"]} for row, other in zip(rows, without)
    ]
