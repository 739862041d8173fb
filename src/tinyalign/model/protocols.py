"""What the model knows of a memory: one method that answers a query with values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """What the nearest entries of one query say: more of them than its memories, nearest first.

    rows: their rows in the bank; texts: their answers; scores: their inner products with the
    query.
    """

    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class MemoryBatch:
    """The memories found for a batch of queries, best first.

    values (B, k, num_latents, d_latents) float; mask (B, k) bool, False where there is no k-th
    memory; scores (B, k) float, the inner products; ids, one list of entry ids a query;
    neighbours, what a wider circle around each query says.
    """

    values: Tensor
    mask: Tensor
    scores: Tensor
    ids: list[list[str]] = field(default_factory=list)
    neighbours: list[Neighbourhood] = field(default_factory=list)


@runtime_checkable
class MemoryRetriever(Protocol):
    """Finds memories for images and instructions. `memory.Retriever` is one."""

    def retrieve(
        self,
        vision_features: Tensor,
        query_ids: Tensor | None = None,
        exclude: Sequence[Any] | None = None,
    ) -> MemoryBatch:
        """vision_features (B, n, D), query_ids (B, L) long in the Perceiver's vocabulary."""
        ...
