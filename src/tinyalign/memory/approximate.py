"""Approximate search with faiss IVF-SQ8, for banks too large to score every key on a CPU.

The index lies in BANK/index/ and is a cache: made when it is missing or of other rows, never the
truth. How many lists a search looks at is chosen so that the recall asked for is reached, measured
against exact search on a sample of the bank's own keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import ConfigError
from tinyalign.hashing import hash_json
from tinyalign.log import logger
from tinyalign.memory.bank import MemoryBank
from tinyalign.memory.files import replace_file
from tinyalign.memory.search import ExactSearch, nothing, rescored

FOLDER = "index"
SAMPLE = 256  # keys whose neighbours are compared with exact search
AT = 5  # neighbours compared
OVERSAMPLE = 8  # candidates rescored exactly, for each neighbour wanted
TRAIN_PER_LIST = 50  # keys that a list is trained on
ADD_BLOCK = 65_536


def faiss_here() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


def _faiss() -> Any:
    if not faiss_here():
        raise ConfigError(
            "approximate search needs faiss, which is not installed; "
            '`pip install "tinyalign-vlm[ann]"`, or use engine "exact"'
        )
    import faiss  # after torch: the other order has crashed on some systems

    return faiss


@dataclass
class IvfSearch:
    """Candidates from an inverted file with 8-bit codes, ordered by exact score."""

    index: Any
    keys: np.ndarray
    nprobe: int
    """Lists a search looks at."""
    recall: float
    """Share of the true five nearest that were found, on a sample, when the index was made."""

    @property
    def nlist(self) -> int:
        """Lists there are."""
        return int(self.index.nlist)

    @classmethod
    def of(cls, bank: MemoryBank, recall: float) -> IvfSearch:
        """The index of a bank: read, lengthened by rows that were added, or made anew."""
        faiss = _faiss()
        manifest = bank.manifest
        path = bank.folder / FOLDER / f"ivf-{manifest.generation}.faiss"
        of = hash_json([manifest.dataset_hash, manifest.key_hash, manifest.generation])
        facts = _facts(path)
        index = _read(faiss, path, bank.rows) if facts and facts["of"] == of else None
        if facts and index is not None:
            made = cls(index, bank.keys, facts["nprobe"], facts["recall"])
            if index.ntotal == facts["rows"] == bank.rows and facts["wanted"] >= recall:
                return made
            _add(index, bank.keys, index.ntotal)
        else:
            made = cls(_trained(faiss, bank.keys), bank.keys, 1, 0.0)
        made._tune(recall)
        made._save(faiss, path, {"of": of, "wanted": recall})
        return made

    def _tune(self, wanted: float) -> None:
        """Look at as few lists as reach the recall that is wanted."""
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(self.keys), min(SAMPLE, len(self.keys)), replace=False))
        queries = torch.from_numpy(self.keys[rows].astype(np.float32))
        own = [[int(row)] for row in rows]
        true = ExactSearch(self.keys).topk(queries, AT, own)[0].tolist()
        self.nprobe = 1
        while True:
            found = self.topk(queries, AT, own)[0].tolist()
            pairs = [(set(a) & set(b), [x for x in b if x >= 0]) for a, b in zip(found, true)]
            self.recall = sum(len(hit - {-1}) for hit, _ in pairs) / max(
                1, sum(len(there) for _, there in pairs)
            )
            if self.recall >= wanted or self.nprobe >= self.nlist:
                return
            self.nprobe = min(2 * self.nprobe, self.nlist)

    def _save(self, faiss: Any, path: Path, facts: dict[str, Any]) -> None:
        """Keep the index beside the bank; a read-only bank is searched without keeping it."""
        facts |= {"rows": len(self.keys), "nprobe": self.nprobe, "recall": self.recall}
        notes = path.with_suffix(".json")
        mine = f"{os.getpid()}.tmp"  # other readers may be making the same index
        asides = path.with_suffix(f".faiss.{mine}"), path.with_suffix(f".json.{mine}")
        try:
            path.parent.mkdir(exist_ok=True)
            faiss.write_index(self.index, str(asides[0]))
            asides[1].write_text(json.dumps(facts))
            for aside, final in zip(asides, (path, notes)):
                replace_file(aside, final)
            for other in path.parent.glob("ivf-*.*"):  # of other generations, or left by a kill
                if other not in (path, notes):
                    other.unlink()
        except (OSError, RuntimeError) as error:
            for aside in asides:
                with suppress(OSError):
                    aside.unlink()
            logger.info("search: the index is not kept (%s)", error)

    def topk(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        hidden: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `ExactSearch.topk`, of the candidates that the index finds."""
        if not k or not len(queries):
            return nothing(len(queries), k)
        faiss = _faiss()
        banned = [set(rows) for rows in exclude or [()] * len(queries)]
        most = max((len(rows) for rows in banned), default=0)
        options: dict[str, Any] = {"nprobe": self.nprobe}
        if hidden is not None and len(hidden):
            options["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(hidden))
        found = self.index.search(
            queries.detach().cpu().float().numpy(),
            min(OVERSAMPLE * k + most, len(self.keys)),
            params=faiss.SearchParametersIVF(**options),
        )[1]
        for row, out in zip(found, banned):
            row[np.isin(row, list(out))] = -1
        return rescored(queries, self.keys, torch.from_numpy(found), k)


def _facts(path: Path) -> dict[str, Any] | None:
    """What was noted of an index when it was made; None if there is none that can be used."""
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        wanted = {"of", "rows", "nprobe", "recall", "wanted"}
        return facts if path.is_file() and wanted <= facts.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _read(faiss: Any, path: Path, rows: int) -> Any:
    """The index in a file; None if it is damaged or of more rows than there are."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        logger.info("search: %s is damaged and made anew (%s)", path, error)
        return None
    return index if index.ntotal <= rows else None


def _trained(faiss: Any, keys: np.ndarray) -> Any:
    count, width = keys.shape
    nlist = max(1, min(int(4 * count**0.5), count // TRAIN_PER_LIST))
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, nlist, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    rows = np.random.default_rng(0).choice(count, min(count, TRAIN_PER_LIST * nlist), replace=False)
    index.train(keys[np.sort(rows)].astype(np.float32))
    _add(index, keys, 0)
    return index


def _add(index: Any, keys: np.ndarray, start: int) -> None:
    for low in range(start, len(keys), ADD_BLOCK):
        index.add(keys[low : low + ADD_BLOCK].astype(np.float32))
