"""The retriever: from an image and an instruction to the k memories nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from tinyalign.errors import BankError, ConfigError
from tinyalign.lazy import former
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.perceiver import (
    KeyFunction,
    Perceiver,
    check_key_function,
    load_perceiver,
)
from tinyalign.memory.search.index import Index, KeyIndex
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.ranking import Ranking
from tinyalign.model.protocols import MemoryBatch, Neighbourhood
from tinyalign.vocabulary import RECALL, Engine

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder


@dataclass(frozen=True)
class Exclusion:
    """What one query must not get: entries with these ids, and entries with these images."""

    ids: tuple[str, ...] = ()
    image_hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit:
    """One memory that a search found."""

    row: int
    """Its row in the bank."""
    score: float
    """Inner product of query and key, 1 at most."""
    entry: Entry
    """What it is."""


UNRELATED = 1e-6
"""A similarity that is none."""


def are_related(hits: Sequence[Hit]) -> bool:
    """Whether a search found anything that is like it; True where it found nothing at all."""
    return not hits or any(abs(hit.score) >= UNRELATED for hit in hits)


class Retriever:
    """Answers a model's queries from a bank, and people's searches too.

    `slots` is how many memories a batch has room for; where k, or the bank, is smaller, the
    remaining slots are zeros under a mask that is False.
    """

    def __init__(
        self,
        bank: MemoryBank,
        perceiver: Perceiver,
        k: int,
        *,
        slots: int | None = None,
        device: str | torch.device = "cpu",
        engine: Engine = "auto",
        recall: float = RECALL,
        index: Index | None = None,
        ranking: Ranking | None = None,
    ) -> None:
        """The Perceiver's key function must be the bank's; raises BankError otherwise.

        With a `device` the keys are held and searched there. engine, recall: see `KeyIndex`.
        index: searches the bank in its place. ranking: which of the neighbours are memories; by
        default the nearest.
        """
        if k < 0:
            raise ConfigError(f"k must be 0 or more, found {k}")
        slots = k if slots is None else slots
        if slots < k:
            raise ConfigError(f"k is {k}, but the model has room for {slots} memories only")
        check_key_function(bank, perceiver)
        self.bank = bank
        self.perceiver = perceiver
        self.k = k
        self.slots = slots
        self.index: Index = index or KeyIndex(bank, device, engine=engine, recall=recall)
        self.ranker = Ranker(bank, ranking or Ranking())
        self.wide = max(k, self.ranker.ranking.neighbours)
        """Neighbours that are looked at, and whose texts a batch brings."""

    @classmethod
    def open(
        cls,
        bank: MemoryBank,
        k: int,
        *,
        slots: int | None = None,
        device: str = "cpu",
        engine: Engine = "auto",
        recall: float = RECALL,
        index: Index | None = None,
        ranking: Ranking | None = None,
    ) -> Retriever:
        """A retriever with the Perceiver that lies in the bank's own folder."""
        return cls(
            bank, load_perceiver(bank), k,
            slots=slots, device=device, engine=engine, recall=recall, index=index,
            ranking=ranking,
        )  # fmt: skip

    def refresh(self) -> bool:
        """Search what was added to the bank since it was opened; returns whether it changed."""
        return self.bank.refresh()

    @property
    def search_settings(self) -> dict[str, Any]:
        """How the bank is searched, where that is not the default: for the record."""
        return getattr(self.index, "settings", {})

    compressor = former("compressor", "perceiver")

    @property
    def key_function(self) -> KeyFunction:
        """What makes queries: the function that made the bank's keys."""
        return self.perceiver.key_function

    def retrieve(
        self,
        vision_features: Tensor,
        query_ids: Tensor | None = None,
        exclude: Sequence[Exclusion] | None = None,
    ) -> MemoryBatch:
        """The memories of a batch: E_R values (B, slots, 32, 96) fp32, mask, scores and ids.

        vision_features (B, n, D), frozen, before the connector; query_ids (B, L) from
        `perceiver.query_ids` (0 is padding) or None; exclude: one Exclusion a query. Tensors
        come back on the device of the features.
        """
        queries = self.key_function.keys(vision_features.detach(), query_ids)
        rows, scores = self._search(queries, self.wide, exclude)
        entries = self.bank.entries.at(row for row in rows.flatten().tolist() if row >= 0)
        indices = torch.full((len(rows), self.slots), -1, dtype=torch.int64)
        shown = torch.zeros(len(rows), self.slots)
        neighbours: list[Neighbourhood] = []
        for b, line in enumerate(rows.tolist()):
            line = [row for row in line if row >= 0]
            found = [entries[row].answer for row in line], scores[b, : len(line)].tolist()
            first = self.ranker.first(*found, self.k)
            indices[b, : len(first)] = torch.tensor([line[i] for i in first], dtype=torch.int64)
            shown[b, : len(first)] = scores[b, first]
            neighbours.append(Neighbourhood(line, *found))
        device = vision_features.device
        return MemoryBatch(
            values=self.bank.gather(indices).to(device),
            mask=(indices >= 0).to(device),
            scores=shown.to(device),
            ids=[[entries[row].id for row in line if row >= 0] for line in indices.tolist()],
            neighbours=neighbours,
        )

    def search(
        self,
        image: Image.Image | None = None,
        text: str | None = None,
        *,
        vision: VisionEncoder | None = None,
        features: Tensor | None = None,
        k: int | None = None,
        exclude: Exclusion | None = None,
        sources: Sequence[str] | None = None,
    ) -> list[Hit]:
        """The k memories nearest to an image, an instruction, or both; best first.

        The image goes through `vision`, which must be the bank's encoder, unless its
        `features` (n, D) are given. sources: only entries from these data sets. Raises
        BankError for another encoder or an unknown source, ConfigError for an image without an
        encoder, and for text alone where keys hold no text.
        """
        if image is not None and features is None:
            if vision is None:
                raise ConfigError("searching by image needs the vision encoder, or its features")
            check_encoder(self.bank, vision.hash)
            features = vision.encode([image])[0]
        ids = None if text is None else self.perceiver.query_ids([text])
        queries = self.key_function.keys(None if features is None else features[None], ids)
        k = self.k if k is None else k
        one = None if exclude is None else [exclude]
        indices, scores = self._search(queries, k, one, sources)
        rows = [row for row in indices[0].tolist() if row >= 0]
        entries = self.bank.entries.at(rows)
        return [Hit(row, score, entries[row]) for row, score in zip(rows, scores[0].tolist())]

    def _search(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Exclusion] | None,
        sources: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        rows = None
        if exclude is not None:
            rows = [self.bank.rows_of(one.ids, one.image_hashes) for one in exclude]
        return self.index.topk(queries, k, rows, sources=sources)


def check_encoder(bank: MemoryBank, found: str) -> None:
    """Raise BankError unless `found` is the hash of the vision encoder that made the bank."""
    wanted = bank.manifest.vision_hash
    if found != wanted:
        name = bank.manifest.vision_name or "unnamed"
        raise BankError(
            f"{bank.folder}: vision encoders differ: the bank was built with {name} (hash "
            f"{wanted}), this encoder has hash {found}; build a bank with this encoder"
        )
