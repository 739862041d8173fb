"""Memories that carry no information: what retrieval must beat to be worth anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import EvaluationError
from tinyalign.hashing import hash_json
from tinyalign.memory.bank import MemoryBank
from tinyalign.memory.compressor import Compressor
from tinyalign.memory.retriever import Exclusion, Retriever
from tinyalign.model.protocols import MemoryBatch


class RandomMemories:
    """As many memories as the search finds, but drawn evenly from the bank.

    The scores stay those of the search by rank, so that only *which* memories are shown differs,
    as with `NeighbourTable.random` in training. What a sample gets depends on the seed and its
    id, not on the batch.
    """

    def __init__(self, retriever: Retriever, seed: int = 0) -> None:
        """Draw from the bank of `retriever`."""
        self.retriever = retriever
        self.seed = seed

    @property
    def bank(self) -> MemoryBank:
        """The bank drawn from."""
        return self.retriever.bank

    @property
    def compressor(self) -> Compressor:
        """What makes the queries of the search whose scores are kept."""
        return self.retriever.compressor

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
        entries = self.bank.entries.at(i for i in rows.flatten().tolist() if i >= 0)
        ids = [[entries[i].id for i in line if i >= 0] for line in rows.tolist()]
        values = self.bank.gather(rows).to(found.values.device)
        return replace(found, values=values, ids=ids)

    def _draw(self, exclude: Exclusion, wanted: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, int(hash_json(exclude.ids), 16)])
        banned = self.bank.rows_of(exclude.ids, exclude.image_hashes)
        allowed = np.setdiff1d(np.arange(len(self.bank)), banned)
        return rng.choice(allowed, size=wanted, replace=False)
