"""Searching the keys of a bank in Milvus, with the same answers as searching them here.

Milvus finds candidates, more of them than are wanted; they are ordered by their exact scores,
from the keys in the bank's folder, just as an embedded search does it. Where its scores cannot
tell that nothing was missed (ties, long exclusion lists), everything that scores as high as the
last neighbour is asked for. With a flat index the result is exact; with another one it is the
exact order of what that index finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.milvus.address import MilvusAddress
from tinyalign.memory.milvus.collection import (
    MOST,
    ROW,
    MilvusCollection,
    among,
    check_bank,
)
from tinyalign.memory.search.exact import check_search, rescored

MARGIN = 64  # candidates beyond k
ERROR = 1e-4  # how far a score of Milvus, in float32, may be off for unit vectors
ANY = -2.0  # less than every score


class MilvusIndex:
    """Searches a collection that holds a bank; the bank's folder has the values."""

    def __init__(self, bank: MemoryBank, collection: MilvusCollection) -> None:
        """Raises BankError unless the collection holds this very bank, as it is now."""
        self.bank = bank
        self.collection = collection
        self._check()
        collection.load()

    @classmethod
    def open(cls, uri: str) -> MilvusIndex:
        """Connect to a collection and open the folder that its values are in.

        Raises ConfigError for a URI that is none and without `pymilvus`; BankError when the
        server cannot be reached, the collection or the folder is missing, or they differ.
        """
        address = MilvusAddress.parse(uri)
        if address.embedded and not Path(address.server).exists():  # connecting would make it
            raise BankError(f"{address}: no file {address.server}; `tinyalign bank push` makes it")
        collection = MilvusCollection(address)
        folder = address.values
        if folder is None:
            folder = _pushed_from(collection)
        elif not folder.is_dir():
            raise BankError(f"{address}: no folder {folder}; ?values= names the bank's folder")
        return cls(MemoryBank.open(folder), collection)

    def _check(self) -> None:
        self._record = check_bank(self.collection, self.bank)
        self._manifest = self.bank.manifest
        self._deleted = self.bank.entries.removed()
        self._grown = False

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        only: np.ndarray | None = None,
        sources: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `KeyIndex.topk`.

        Raises BankError as well when the server does not answer, or when it answers with rows
        or scores that are not this bank's.
        """
        check_search(self.bank.manifest.key_dim, queries, k, exclude)
        if self._manifest is not self.bank.manifest:  # refreshed
            self._check()
        queries = queries.detach().cpu().float()
        if not k or not len(queries):
            return rescored(queries, self.bank.keys, torch.full((len(queries), 0), -1), k)
        found = self._candidates(queries.numpy(), k, exclude, self._where(only, sources))
        width = max(len(rows) for rows, _ in found)
        indices = torch.full((len(queries), width), -1)
        for line, (rows, _) in zip(indices, found):
            line[: len(rows)] = torch.from_numpy(rows)
        chosen, scores = rescored(queries, self.bank.keys, indices, k)
        self._check_scores(found, chosen, scores)
        return chosen, scores

    # -- candidates ---------------------------------------------------------------------------

    def _where(self, only: np.ndarray | None, sources: Sequence[str] | None) -> str:
        """The expression that the entries of this search must fit; usually none."""
        parts = []
        removed = np.setdiff1d(self.bank.removed, self._deleted, assume_unique=True)
        if len(removed):  # since the bank was opened
            parts.append(among(ROW, removed.tolist(), negate=True))
        if self._grown:
            parts.append(f"{ROW} < {self.bank.rows}")
        if only is not None:
            parts.append(among(ROW, np.asarray(only).tolist()))
        if sources is not None:
            parts.append(among("source", self.bank.known_sources(sources)))
        return " and ".join(parts)

    def _candidates(
        self, queries: np.ndarray, k: int, exclude: Sequence[Sequence[int]] | None, where: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query: rows among which its k nearest are, and their scores in Milvus."""
        banned = [list(rows) for rows in exclude or [()] * len(queries)]
        limit = min(k + MARGIN + max(map(len, banned)), MOST)
        found = self.collection.search(queries, limit, where, index=self._record.index)
        sure = []
        for query, (rows, scores), out in zip(queries, found, banned):
            keep = ~np.isin(rows, out) & (rows < self.bank.rows)
            self._grown = self._grown or bool((rows >= self.bank.rows).any())
            if _complete(rows, scores, scores[keep], k, limit):
                sure.append((rows[keep], scores[keep]))
            else:
                sure.append(self._all_near(query, k, _both(where, self._own(out))))
        return sure

    def _own(self, banned: list[int]) -> str:
        bounds = f"{ROW} < {self.bank.rows}"
        return _both(bounds, among(ROW, banned, negate=True)) if banned else bounds

    def _all_near(self, query: np.ndarray, k: int, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Every row that may be among the k nearest of one query, however many tie."""
        limit = min(k + MARGIN, MOST)
        [(rows, scores)] = self.collection.search(
            query[None], limit, where, index=self._record.index
        )
        if _complete(rows, scores, scores, k, limit):
            return rows, scores
        threshold = float(scores[k - 1]) - 3 * ERROR if k <= limit else ANY
        parts = list(self._above(query, threshold, where, 0, self.bank.rows))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _above(
        self, query: np.ndarray, threshold: float, where: str, low: int, high: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows of low..high-1 that score more, by halves where one answer cannot hold them."""
        [found] = self.collection.search(
            query[None],
            MOST,
            _both(where, f"{ROW} >= {low} and {ROW} < {high}"),
            above=threshold,
            index=self._record.index,
        )
        if len(found[0]) < MOST or high - low <= MOST:
            yield found
        else:
            middle = (low + high) // 2
            yield from self._above(query, threshold, where, low, middle)
            yield from self._above(query, threshold, where, middle, high)

    def _check_scores(
        self, found: list[tuple[np.ndarray, np.ndarray]], chosen: Tensor, scores: Tensor
    ) -> None:
        """Raise BankError where Milvus scored other keys than those of the folder."""
        for (rows, rough), line, exact in zip(found, chosen.tolist(), scores.tolist()):
            said = dict(zip(rows.tolist(), rough.tolist()))
            for row, score in zip(line, exact):
                if row >= 0 and abs(said[row] - score) > ERROR:
                    raise BankError(
                        f"{self.collection.address}: row {row} scores {said[row]:.5f}, by its key "
                        f"in {self.bank.folder} it is {score:.5f}; the collection was filled from "
                        "another bank meanwhile. Open it anew, or push this bank again"
                    )


def _complete(
    rows: np.ndarray, scores: np.ndarray, allowed: np.ndarray, k: int, limit: int
) -> bool:
    """Whether an answer holds the k nearest for sure.

    rows, scores: all of the answer; allowed: the scores that count. It does if Milvus had no
    more, or if what it left out scores clearly less than the k-th.
    """
    if len(rows) < limit:
        return True
    return len(allowed) >= k and float(allowed[k - 1] - scores[-1]) > 2 * ERROR


def _both(one: str, other: str) -> str:
    return f"({one}) and {other}" if one else other


def _pushed_from(collection: MilvusCollection) -> Path:
    """The folder that a collection was pushed from, if it is there."""
    folder = Path(collection.record().folder)
    if not folder.is_dir():
        raise BankError(
            f"{collection.address}: was pushed from {folder}, which is not here; copy or mount "
            "the bank's folder, and name it with ?values=FOLDER"
        )
    return folder
