"""From queries to rows of a bank: exact search, or an approximate one where a bank is very large.

The choice is by size, or the caller's, and said in the log. Either way rows come back by exact
score, removed entries never come back, and a bank that was refreshed is searched as it is now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.manifest import Manifest
from tinyalign.memory.search.exact import ExactSearch
from tinyalign.vocabulary import RECALL, Engine

EXACT_UP_TO = {"cpu": 300_000, "cuda": 10_000_000}


class Searcher(Protocol):
    """What finds rows by inner product."""

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        hidden: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.topk`."""


class Index(Protocol):
    """What a retriever searches a bank with: `KeyIndex` here, `MilvusIndex` on a server."""

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        only: np.ndarray | None = None,
        sources: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `KeyIndex.topk`."""


class KeyIndex:
    """Searches the keys of a bank, whichever way suits its size."""

    def __init__(
        self,
        bank: MemoryBank,
        device: str | torch.device = "cpu",
        *,
        engine: Engine = "auto",
        recall: float = RECALL,
    ) -> None:
        """engine: "exact", "ivf" (needs faiss: extra `ann`), or by size. recall: share of the
        true nearest that an approximate search must find, measured when its index is made.
        """
        if engine not in ("auto", "exact", "ivf"):
            raise ConfigError(f"engine is {engine!r}; expected auto, exact or ivf")
        if not 0.0 < recall <= 1.0:
            raise ConfigError(f"recall is a share between 0 and 1, found {recall}")
        self.bank = bank
        self.device = torch.device(device)
        self.engine: Engine = engine
        self.recall = recall
        self._keys: np.ndarray | None = None
        self._exact: ExactSearch | None = None
        self._of: Manifest | None = None
        self._approximate: Searcher | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for instead of a default: "engine", "recall"."""
        asked = {"engine": (self.engine, "auto"), "recall": (self.recall, RECALL)}
        return {name: value for name, (value, default) in asked.items() if value != default}

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        only: np.ndarray | None = None,
        sources: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k rows with the largest inner product, for each query; see `ExactSearch.topk`.

        exclude[b]: rows that query b must not get. only: the rows that any query may get
        (int64), sources: the data sets that they must come from; a search with one of these is
        always exact.
        """
        hidden = self.bank.removed
        if sources is not None:
            rows = self.bank.rows_from(sources)
            only = rows if only is None else np.intersect1d(rows, only)
        if only is not None:
            allowed = np.zeros(self.bank.rows, dtype=bool)
            allowed[only] = True
            allowed[hidden] = False
            hidden = (~allowed).nonzero()[0]
        searcher = self._exact_now() if only is not None else self._searcher()
        return searcher.topk(queries, k, exclude, hidden)

    def _searcher(self) -> Searcher:
        engine = self.engine
        if engine == "auto":
            limit = EXACT_UP_TO.get(self.device.type, EXACT_UP_TO["cpu"])
            engine = "exact" if self.bank.rows <= limit else "ivf"
        if engine == "exact":
            return self._exact_now()
        if self._approximate is None or self._keys is not self.bank.keys:
            self._approximate = self._ivf()
            self._keys = self.bank.keys
        return self._approximate

    def _exact_now(self) -> ExactSearch:
        if self._exact is None or self._exact.keys is not self.bank.keys:
            now = self.bank.manifest
            grown = self._of is not None and now.keeps_rows_of(self._of)
            before = self._exact if grown else None
            self._exact = ExactSearch(self.bank.keys, self.device, before=before)
            self._of = now
        return self._exact

    def _ivf(self) -> Searcher:
        from tinyalign.memory.search.approximate import IvfSearch, faiss_here

        if self.engine == "auto" and not faiss_here():
            logger.info(
                "search: %d rows are many for exact search on a CPU; `pip install "
                '"tinyalign-vlm[ann]"` for an approximate one', self.bank.rows,
            )  # fmt: skip
            return self._exact_now()
        made = IvfSearch.of(self.bank, self.recall)
        logger.info(
            "search: %d rows, so approximate (faiss IVF-SQ8, %d of %d lists looked at), recall "
            "%.3f of the %.2f asked for", self.bank.rows, made.nprobe, made.nlist, made.recall,
            self.recall,
        )  # fmt: skip
        return made
