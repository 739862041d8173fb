"""Approximate search with faiss IVF-SQ8, for banks too large to score every key on a CPU.

The index lies in BANK/index/ and is a cache: made when it is missing, damaged or of other rows,
never the truth. How many lists a search looks at is chosen so that the recall asked for is
reached, measured against exact search on a sample of the bank's own keys.
"""

from __future__ import annotations

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
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.files import replace_file
from tinyalign.memory.bank.manifest import Manifest
from tinyalign.memory.search.exact import ExactSearch, nothing, rescored
from tinyalign.memory.search.index_note import IndexNote, index_path, usable_note

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
        path, note = index_path(bank), usable_note(bank)
        index = None if note is None else _read(faiss, path, note.rows)
        if note is not None and index is not None:
            made = cls(index, bank.keys, note.nprobe, note.recall)
            if note.rows == bank.rows and note.wanted >= recall:
                return made
            _add(index, bank.keys, note.rows)
        else:
            made = cls(_trained(faiss, bank.keys), bank.keys, 1, 0.0)
        made._tune(recall)
        made._save(faiss, path, bank.manifest, recall)
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

    def _save(self, faiss: Any, path: Path, manifest: Manifest, wanted: float) -> None:
        """Keep the index beside the bank; a read-only bank is searched without keeping it."""
        notes = path.with_suffix(".json")
        mine = f"{os.getpid()}.tmp"  # other readers may be making the same index
        asides = path.with_suffix(f".faiss.{mine}"), path.with_suffix(f".json.{mine}")
        try:
            path.parent.mkdir(exist_ok=True)
            faiss.write_index(self.index, str(asides[0]))
            note = IndexNote.of_file(
                asides[0], manifest, nprobe=self.nprobe, recall=self.recall, wanted=wanted
            )
            notes.unlink(missing_ok=True)  # killed before the new note: no index, not a wrong one
            replace_file(asides[0], path)
            note.write(asides[1], notes)
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


def _read(faiss: Any, path: Path, rows: int) -> Any:
    """The index in a file; None where faiss cannot read it, or it has not so many rows."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        logger.info("search: %s cannot be used (%s)", path, error)
        return None
    return index if index.ntotal == rows else None


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
