"""Queries of a whole data set, from features that were computed before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tinyalign.memory.perceiver import Perceiver
from tinyalign.training.caches.features import Features


def query_keys(
    perceiver: Perceiver,
    features: Features,
    instructions: Sequence[str],
    image_hashes: Sequence[str] | None = None,
    block: int = 64,
) -> torch.Tensor:
    """Queries (N, d_k) from each sample's image and its instruction; zeros without image.

    image_hashes: those of training samples, whose own text must have no part in their query.
    """
    queries = torch.zeros(len(features), perceiver.key_function.dim)
    seen = [i for i in features.usable() if features.rows[i]]
    for start in range(0, len(seen), block):
        rows = seen[start : start + block]
        texts = [instructions[i] for i in rows]
        hashes = None if image_hashes is None else [image_hashes[i] for i in rows]
        queries[rows] = perceiver.keys(features.batch(rows), texts, hashes).cpu()
    return queries
