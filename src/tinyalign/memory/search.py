"""Exact maximum inner-product search: every key is scored, in blocks, ties go to the lower row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import ConfigError

BLOCK = 65_536
MARGIN = 64
# How far a blockwise score may be off for unit vectors, by what torch may do to fp32 products.
SCORE_ERROR = {"highest": 1e-4, "high": 4e-3, "medium": 2e-2}


def exact_topk(
    queries: Tensor,
    keys: np.ndarray | Tensor,
    k: int,
    exclude: Sequence[Sequence[int]] | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """The k keys with the largest inner product, for each query.

    queries (B, d) and keys (N, d) of unit length or zero; `exclude[b]` lists rows that query b
    must not get. Returns indices (B, k) int64, best first, and scores (B, k) fp32, both on the
    CPU; where fewer than k rows are left, the index is -1 and the score 0.

    Blockwise fp32 products choose candidates with room to spare; these are scored again in
    float64, one pair at a time, so that equal keys get equal scores whatever block or batch
    they were in, and the order is by score, then by row.
    """
    rows, width = keys.shape
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ConfigError(
            f"queries must be (B, {width}) like the keys, found {tuple(queries.shape)}"
        )
    if k < 0:
        raise ConfigError(f"k must be 0 or more, found {k}")
    if exclude is not None and len(exclude) != len(queries):
        raise ConfigError(f"{len(queries)} queries but {len(exclude)} exclusion lists")
    if not k or not rows or not len(queries):
        return _nothing(len(queries), k)
    device = keys.device if isinstance(keys, Tensor) else queries.device
    queries = queries.to(device, torch.float32)
    banned = _Banned(exclude, device)
    room = min(k + MARGIN, rows)
    scores, indices = _best(queries, keys, room, banned, block)
    slack = 2 * SCORE_ERROR[torch.get_float32_matmul_precision()]
    threshold = scores[:, min(k, room) - 1] - slack
    indices = torch.where(scores >= threshold[:, None], indices, -1)
    indices = torch.where(scores > -torch.inf, indices, -1)
    chosen, exact = _rescored(queries, keys, indices, k)
    crowded = (scores[:, -1] >= threshold) & (scores[:, -1] > -torch.inf)
    if room < rows:
        for b in crowded.nonzero()[:, 0].tolist():  # more near-ties than there was room for
            near = _above(queries[b : b + 1], keys, float(threshold[b]), banned.only(b), block)
            chosen[b : b + 1], exact[b : b + 1] = _rescored(queries[b : b + 1], keys, near, k)
    return chosen, exact


class _Banned:
    """Excluded (query, row) pairs, sorted by row so that a block finds its own quickly."""

    def __init__(self, exclude: Sequence[Sequence[int]] | None, device: torch.device) -> None:
        pairs = [(row, b) for b, rows in enumerate(exclude or ()) for row in rows if row >= 0]
        table = np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2)
        self.rows, self.queries, self.device = table[:, 0], table[:, 1], device

    def only(self, query: int) -> _Banned:
        """The exclusions of one query, as query 0."""
        return _Banned([self.rows[self.queries == query].tolist()], self.device)

    def strike(self, scores: Tensor, start: int) -> None:
        """Set the excluded scores (B, block) of the block that begins at `start` to -inf."""
        low, high = np.searchsorted(self.rows, [start, start + scores.shape[1]])
        if low < high:
            columns = torch.from_numpy(self.rows[low:high] - start).to(self.device)
            scores[torch.from_numpy(self.queries[low:high]).to(self.device), columns] = -torch.inf


def _block_scores(
    queries: Tensor, keys: np.ndarray | Tensor, banned: _Banned, block: int
) -> Iterator[tuple[int, Tensor]]:
    """(start, scores (B, <= block)) for every block of keys."""
    for start in range(0, len(keys), block):
        part = torch.as_tensor(keys[start : start + block]).to(queries.device, torch.float32)
        scores = queries @ part.T
        banned.strike(scores, start)
        yield start, scores


def _best(
    queries: Tensor, keys: np.ndarray | Tensor, room: int, banned: _Banned, block: int
) -> tuple[Tensor, Tensor]:
    """The `room` best scores (B, room) and their rows, over all blocks, in descending order."""
    best: tuple[Tensor, Tensor] | None = None
    for start, scores in _block_scores(queries, keys, banned, block):
        values, columns = scores.topk(min(room, scores.shape[1]), dim=1)
        columns = columns + start
        if best is not None:
            values, columns = torch.cat([best[0], values], 1), torch.cat([best[1], columns], 1)
            values, order = values.topk(min(room, values.shape[1]), dim=1)
            columns = columns.gather(1, order)
        best = (values, columns)
    assert best is not None  # keys are never empty here
    return best


def _above(
    query: Tensor, keys: np.ndarray | Tensor, threshold: float, banned: _Banned, block: int
) -> Tensor:
    """All rows (1, n) that score at least `threshold` for one query."""
    found = [
        (scores[0] >= threshold).nonzero()[:, 0] + start
        for start, scores in _block_scores(query, keys, banned, block)
    ]
    return torch.cat(found)[None]


def _rescored(
    queries: Tensor, keys: np.ndarray | Tensor, indices: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Order candidates (B, m; -1 = none) by exact score, then row; keep k. CPU tensors."""
    order = torch.where(indices < 0, len(keys), indices).sort(dim=1).values.cpu()
    chosen, exact = _nothing(len(queries), k)
    for b, query in enumerate(queries.double().cpu()):
        rows = order[b][order[b] < len(keys)]
        if isinstance(keys, Tensor):
            vectors = keys[rows.to(keys.device)].double().cpu()
        else:
            vectors = torch.from_numpy(keys[rows.numpy()]).double()
        scores = (vectors * query).sum(dim=1).float()
        best = scores.sort(descending=True, stable=True).indices[:k]
        chosen[b, : len(best)], exact[b, : len(best)] = rows[best], scores[best]
    return chosen, exact


def _nothing(batch: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.full((batch, k), -1, dtype=torch.int64), torch.zeros(batch, k)
