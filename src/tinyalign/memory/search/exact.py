"""Exact maximum inner-product search: every key is scored, ties go to the lower row.

Fast and exact at once: a rough score for every key, in bfloat16 where the processor multiplies it
in hardware, chooses candidates with room for all that rounding can do; these are scored again in
float64 from the keys as stored. So CPU and GPU, and any batch or block size, give the same rows
and the same scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import ConfigError
from tinyalign.model.device import multiplies_bfloat16

BLOCK = 65_536  # keys scored at a time
GROUP = 64  # columns of which only the best is looked at first
MARGIN = {torch.float32: 64, torch.bfloat16: 192}  # candidates beyond k
# How far a rough score may be off for unit vectors. For fp32: what torch may do to products.
FP32_ERROR = {"highest": 1e-4, "high": 4e-3, "medium": 2e-2}
# bf16 has 8 significant bits: both factors and the result are rounded by 2^-8 at most.
BF16_ERROR = 3 * 2**-8


def rough_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied in hardware, else float32."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


class ExactSearch:
    """Searches keys (N, d_k); holds a rough copy of them on its device from the first search on.

    A bank that grew is searched by a new one made with `before`, which copies only what is new.
    """

    def __init__(
        self,
        keys: np.ndarray,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype | None = None,
        block: int = BLOCK,
        before: ExactSearch | None = None,
    ) -> None:
        """keys (N, d_k) fp16 or fp32, of unit length or zero; dtype: of the rough copy."""
        self.keys = keys
        self.device = torch.device(device)
        self.dtype = rough_dtype(self.device) if dtype is None else dtype
        self.block = block
        self._rough: Tensor | None = before._rough if before is not None else None

    def _copy(self) -> Tensor:
        """The rough copy (N, d_k), made or lengthened now."""
        have = 0 if self._rough is None else len(self._rough)
        if self._rough is None or have != len(self.keys):
            starts = range(have, len(self.keys), self.block)
            new = [torch.as_tensor(self.keys[s : s + self.block]).to(self.dtype) for s in starts]
            parts = [part.to(self.device) for part in new]
            self._rough = torch.cat(parts if self._rough is None else [self._rough, *parts])
        return self._rough

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        hidden: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k keys with the largest inner product, for each query.

        queries (B, d_k) of unit length or zero; `exclude[b]` lists rows that query b must not
        get, `hidden` rows (int64) that none gets. Returns indices (B, k) int64, best first, and
        scores (B, k) fp32, both on the CPU; where fewer than k rows are left, the index is -1
        and the score 0.
        """
        check_search(self.keys.shape[1], queries, k, exclude)
        if not k or not len(self.keys) or not len(queries):
            return nothing(len(queries), k)
        queries = queries.detach().to(self.device, torch.float32)
        scan = _Scan(self._copy(), queries, _Banned(exclude, hidden, self.device), self.block)
        room = min(k + MARGIN[self.dtype], len(self.keys))
        scores, indices = scan.best(room)
        threshold = scores[:, min(k, room) - 1] - 2 * self._error
        near = (scores >= threshold[:, None]) & (scores > -torch.inf)
        chosen, exact = self._rescored(queries, torch.where(near, indices, -1), k)
        if room < len(self.keys):
            crowded = near[:, -1].nonzero()[:, 0].tolist()
            for b in crowded:  # more near-ties than there was room for
                rows = scan.above(b, float(threshold[b]))
                one = queries[b : b + 1]
                chosen[b : b + 1], exact[b : b + 1] = self._rescored(one, rows, k)
        return chosen, exact

    @property
    def _error(self) -> float:
        if self.dtype == torch.float32:
            return FP32_ERROR[torch.get_float32_matmul_precision()]
        return BF16_ERROR

    def _rescored(self, queries: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return rescored(queries, self.keys, indices, k)


def exact_topk(
    queries: Tensor,
    keys: np.ndarray | Tensor,
    k: int,
    exclude: Sequence[Sequence[int]] | None = None,
    *,
    block: int = BLOCK,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One search without an `ExactSearch` to keep; see `ExactSearch.topk`."""
    array = keys.numpy() if isinstance(keys, Tensor) else keys
    return ExactSearch(array, queries.device, dtype=dtype, block=block).topk(queries, k, exclude)


def check_search(
    width: int, queries: Tensor, k: int, exclude: Sequence[Sequence[int]] | None
) -> None:
    """Raise ConfigError unless these can be searched for among keys of this width."""
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ConfigError(
            f"queries must be (B, {width}) like the keys, found {tuple(queries.shape)}"
        )
    if k < 0:
        raise ConfigError(f"k must be 0 or more, found {k}")
    if exclude is not None and len(exclude) != len(queries):
        raise ConfigError(f"{len(queries)} queries but {len(exclude)} exclusion lists")


def rescored(queries: Tensor, keys: np.ndarray, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Order candidates (B, m; -1 = none) by exact score, then row; keep k. CPU tensors."""
    order = torch.where(indices < 0, len(keys), indices).cpu().sort(dim=1).values
    chosen, exact = nothing(len(queries), k)
    for b, query in enumerate(queries.double().cpu()):
        rows = order[b][order[b] < len(keys)]
        vectors = torch.from_numpy(keys[rows.numpy()]).double()
        scores = (vectors * query).sum(dim=1).float()
        best = scores.sort(descending=True, stable=True).indices[:k]
        chosen[b, : len(best)], exact[b, : len(best)] = rows[best], scores[best]
    return chosen, exact


class _Banned:
    """Excluded (query, row) pairs, and rows hidden from all, sorted so a block finds its own."""

    def __init__(
        self,
        exclude: Sequence[Sequence[int]] | None,
        hidden: np.ndarray | None,
        device: torch.device,
    ) -> None:
        pairs = [(row, b) for b, rows in enumerate(exclude or ()) for row in rows if row >= 0]
        table = np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2)
        self.rows, self.queries, self.device = table[:, 0], table[:, 1], device
        self.hidden = np.zeros(0, dtype=np.int64) if hidden is None else np.sort(hidden)

    def strike(self, scores: Tensor, start: int, query: int | None = None) -> None:
        """Set banned scores (block, B) of the block from `start` on to -inf, in place.

        query: the one whose column `scores` holds; all by default.
        """
        stop = start + len(scores)
        low, high = np.searchsorted(self.hidden, [start, stop])
        if low < high:
            scores[torch.from_numpy(self.hidden[low:high] - start).to(self.device)] = -torch.inf
        low, high = np.searchsorted(self.rows, [start, stop])
        rows, owners = self.rows[low:high] - start, self.queries[low:high]
        if query is not None:
            rows = rows[owners == query]
            owners = np.zeros_like(rows)
        if len(rows):
            where = [torch.from_numpy(one).to(self.device) for one in (rows, owners)]
            scores[where[0], where[1]] = -torch.inf


class _Scan:
    """Rough scores of all keys for a batch of queries, block by block.

    Scores lie as (keys, queries): the product is twice as fast that way round on a CPU, and the
    maximum over a group of keys five times.
    """

    def __init__(self, keys: Tensor, queries: Tensor, banned: _Banned, block: int) -> None:
        self.keys, self.queries = keys, queries.to(keys.dtype)
        self.banned, self.block = banned, block

    def _blocks(self, query: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(start, scores (<= block, B)) for every block of keys."""
        queries = self.queries if query is None else self.queries[query : query + 1]
        for start in range(0, len(self.keys), self.block):
            scores = rough_scores(self.keys[start : start + self.block], queries)
            self.banned.strike(scores, start, query)
            yield start, scores

    def best(self, room: int) -> tuple[Tensor, Tensor]:
        """The `room` best scores (B, room) fp32 and their rows, over all blocks, best first."""
        values, rows = [], []
        for start, scores in self._blocks():
            best, where = grouped_topk(scores, min(room, len(scores)))
            values.append(best.float())
            rows.append(where + start)
        found, order = torch.cat(values, dim=1).topk(room, dim=1)
        return found, torch.cat(rows, dim=1).gather(1, order)

    def above(self, query: int, threshold: float) -> Tensor:
        """All rows (1, n) that score at least `threshold` for one query."""
        found = [
            (scores[:, 0].float() >= threshold).nonzero()[:, 0] + start
            for start, scores in self._blocks(query)
        ]
        return torch.cat(found)[None]


def rough_scores(keys: Tensor, queries: Tensor) -> Tensor:
    """Inner products (n, B) of keys (n, d_k) and queries (B, d_k), off by the stated error at most.

    On a GPU sums are kept in float32 to their end: in bfloat16 their parts would be rounded too.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        return keys @ queries.T
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def grouped_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each column of scores (n, B): values and rows, both (B, k), best first.

    By way of the k best groups, in which the k best must lie: the maximum of each group of rows
    is one pass, and only k groups are sorted.
    """
    n, batch = scores.shape
    whole = n // GROUP * GROUP
    if n // GROUP <= 2 * k:
        return scores.T.topk(k, dim=1)
    groups = scores[:whole].view(-1, GROUP, batch)
    winners = groups.amax(dim=1).T.topk(k, dim=1).indices  # (B, k)
    inside = groups.permute(2, 0, 1).gather(1, winners[..., None].expand(-1, -1, GROUP))
    rows = winners[..., None] * GROUP + torch.arange(GROUP, device=scores.device)
    rest = torch.arange(whole, n, device=scores.device).expand(batch, -1)
    candidates = torch.cat([inside.flatten(1), scores[whole:].T], dim=1)
    values, order = candidates.topk(k, dim=1)
    return values, torch.cat([rows.flatten(1), rest], dim=1).gather(1, order)


def nothing(batch: int, k: int) -> tuple[Tensor, Tensor]:
    """What a search returns where there is nothing to find."""
    return torch.full((batch, k), -1, dtype=torch.int64), torch.zeros(batch, k)
