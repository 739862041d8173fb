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
from tinyalign.memory.search.ranker import Ranker
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
    def ranker(self) -> Ranker:
        """What says on what neighbours agree."""
        return self.retriever.ranker

    @property
    def k(self) -> int:
        """Memories a query."""
        return self.retriever.k

    @property
    def search_settings(self) -> dict[str, Any]:
        """How the bank is searched, where that is not the default."""
        return self.retriever.search_settings

    def _showing(
        self, found: MemoryBatch, rows: Tensor, others: Sequence[Sequence[int]]
    ) -> MemoryBatch:
        """`found` with the memories at `rows` (B, k) of the bank instead, -1 for none, and with
        neighbours that say what the rows `others` say."""
        shown = [i for i in rows.flatten().tolist() if i >= 0]
        entries = self.bank.entries.at([*shown, *(i for line in others for i in line)])
        ids = [[entries[i].id for i in line if i >= 0] for line in rows.tolist()]
        neighbours = [
            replace(near, rows=list(line), texts=[entries[i].answer for i in line])
            for near, line in zip(found.neighbours, others)
        ]
        values = self.bank.gather(rows).to(found.values.device)
        return replace(found, values=values, ids=ids, neighbours=neighbours)


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
            banned = self._banned(exclude, row)
            for slot, name in enumerate(ids):
                [at] = np.setdiff1d(self.bank.rows_of([name]), self.bank.removed)
                rows[row, slot] = self._cycle.next(int(at), banned)
        others = [
            [self._cycle.next(at, self._banned(exclude, row)) for at in near.rows]
            for row, near in enumerate(found.neighbours)
        ]
        return self._showing(found, rows, others)

    def _banned(self, exclude: Sequence[Exclusion] | None, row: int) -> set[int]:
        one = Exclusion() if exclude is None else exclude[row]
        return set(self.bank.rows_of(one.ids, one.image_hashes))


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
        others: list[list[int]] = []
        for row, (one, wanted) in enumerate(zip(exclude, found.mask.sum(dim=1).tolist())):
            wide = len(found.neighbours[row].rows) if found.neighbours else wanted
            drawn = self._draw(one, max(wide, wanted))
            rows[row, :wanted] = torch.from_numpy(drawn[:wanted])
            others.append(drawn[:wide].tolist())
        return self._showing(found, rows, others)

    def _draw(self, exclude: Exclusion, wanted: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, int(hash_json(exclude.ids), 16)])
        banned = self.bank.rows_of(exclude.ids, exclude.image_hashes)
        allowed = np.setdiff1d(self.bank.live, banned)
        return rng.choice(allowed, size=wanted, replace=False)
