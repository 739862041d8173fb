"""Memories that carry no information: what retrieval must beat to be worth anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import EvaluationError
from tinyalign.hashing import hash_json
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.perceiver import Perceiver
from tinyalign.memory.search.cycle import Cycle
from tinyalign.memory.search.retriever import Exclusion, Retriever
from tinyalign.model.protocols import MemoryBatch


class _Control:
    """A retriever whose search is the real one, and whose memories are others."""

    def __init__(self, retriever: Retriever, seed: int = 0) -> None:
        """Search in the bank of `retriever`; `seed` decides which memories are shown instead."""
        self.retriever = retriever
        self.seed = seed

    @property
    def bank(self) -> MemoryBank:
        """The bank that memories come from."""
        return self.retriever.bank

    @property
    def perceiver(self) -> Perceiver:
        """What makes the queries of the search whose scores are kept."""
        return self.retriever.perceiver

    @property
    def k(self) -> int:
        """Memories a query."""
        return self.retriever.k

    @property
    def search_settings(self) -> dict[str, Any]:
        """How the bank is searched, where that is not the default."""
        return self.retriever.search_settings

    def _showing(self, found: MemoryBatch, rows: Tensor) -> MemoryBatch:
        """`found` with the memories at `rows` (B, k) of the bank instead, -1 for none."""
        entries = self.bank.entries.at(i for i in rows.flatten().tolist() if i >= 0)
        ids = [[entries[i].id for i in line if i >= 0] for line in rows.tolist()]
        return replace(found, values=self.bank.gather(rows).to(found.values.device), ids=ids)


class ShuffledBank(_Control):
    """The bank with its values dealt out anew: every key finds another entry's value.

    One random cycle through the whole bank, drawn from the seed, says whose value an entry gets,
    so no entry keeps its own, and two queries that find the same entry see the same wrong value.
    Where the value's own image or id is excluded for a query, the next one on the cycle is
    taken. Scores stay those of the search. A bank of one entry cannot be shuffled.
    """

    control = "shuffled"

    def __init__(self, retriever: Retriever, seed: int = 0) -> None:
        """Raises EvaluationError for a bank of fewer than two entries."""
        super().__init__(retriever, seed)
        if len(self.bank) < 2:
            raise EvaluationError(
                f"{self.bank.folder}: {len(self.bank)} entries; a bank needs two to be shuffled"
            )
        self._cycle = Cycle(self.bank.live, self.bank.rows, seed)

    def retrieve(
        self,
        vision_features: Tensor,
        query_ids: Tensor | None = None,
        exclude: Sequence[Exclusion] | None = None,
    ) -> MemoryBatch:
        """As `Retriever.retrieve`."""
        found = self.retriever.retrieve(vision_features, query_ids, exclude)
        rows = torch.full(found.mask.shape, -1, dtype=torch.int64)
        for row, ids in enumerate(found.ids):
            one = Exclusion() if exclude is None else exclude[row]
            banned = set(self.bank.rows_of(one.ids, one.image_hashes))
            for slot, name in enumerate(ids):
                [at] = np.setdiff1d(self.bank.rows_of([name]), self.bank.removed)
                rows[row, slot] = self._cycle.next(int(at), banned)
        return self._showing(found, rows)


class RandomMemories(_Control):
    """As many memories as the search finds, but drawn evenly from the bank.

    The scores stay those of the search by rank, so that only *which* memories are shown differs,
    as with `NeighbourTable.random` in training. What a sample gets depends on the seed and its
    id, not on the batch.
    """

    control = "random"

    def retrieve(
        self,
        vision_features: Tensor,
        query_ids: Tensor | None = None,
        exclude: Sequence[Exclusion] | None = None,
    ) -> MemoryBatch:
        """As `Retriever.retrieve`; `exclude` must name the ids, from which the draw is seeded."""
        if exclude is None:
            raise EvaluationError("Random memories are drawn by sample id: pass `exclude`.")
        found = self.retriever.retrieve(vision_features, query_ids, exclude)
        rows = torch.full(found.mask.shape, -1, dtype=torch.int64)
        for row, (one, wanted) in enumerate(zip(exclude, found.mask.sum(dim=1).tolist())):
            rows[row, :wanted] = torch.from_numpy(self._draw(one, wanted))
        return self._showing(found, rows)

    def _draw(self, exclude: Exclusion, wanted: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, int(hash_json(exclude.ids), 16)])
        banned = self.bank.rows_of(exclude.ids, exclude.image_hashes)
        allowed = np.setdiff1d(self.bank.live, banned)
        return rng.choice(allowed, size=wanted, replace=False)
