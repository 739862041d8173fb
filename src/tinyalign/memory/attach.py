"""Giving a model its memory: after this, `generate` retrieves by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.open_bank import open_bank
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.ranking import Ranking
from tinyalign.memory.search.retriever import Retriever, check_encoder
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.copier import NEIGHBOURS, Copier
from tinyalign.model.copying import CopyGate
from tinyalign.vocabulary import RECALL, Engine


def attach_memory(
    model: Any,
    processor: Any,
    bank_dir: str | Path,
    k: int | None = None,
    *,
    engine: Engine = "auto",
    recall: float = RECALL,
    copy: float | None = None,
) -> Retriever:
    """Open a bank and set it as the model's retriever; the processor then makes room for it.

    bank_dir: a bank's folder, or the Milvus URI of one. engine, recall: how a folder's bank is
    searched, see `KeyIndex`; a Milvus server has its own index.

    copy: the share of each token's probability that is copied from the neighbours' texts; by
    default the model's own gate decides, if it has one; 0 copies nothing.

    k is by default the model's own; it may be smaller, never larger. The model's encoder and
    the Perceiver it was trained with must be those of the bank. Raises BankError saying which
    of the two differs, or that the model has no memory connector.
    """
    opened = open_bank(bank_dir)
    bank = opened.bank
    check_model(model, processor, bank, k)
    slots = model.config.memory_k
    retriever = Retriever.open(
        bank,
        slots if k is None else k,
        slots=slots,
        device=str(model.device),
        engine=engine,
        recall=recall,
        index=opened.index,
        ranking=Ranking.of(model.config),
    )
    model.retriever = retriever
    model.copier = copier_of(model, processor, copy, retriever.ranker)
    if model.copier is not None:
        retriever.wide = max(retriever.wide, model.copier.neighbours)
    processor.memory_enabled = True
    processor.query_tokenizer = retriever.perceiver.query_ids
    return retriever


def copier_of(model: Any, processor: Any, copy: float | None, ranker: Ranker) -> Copier | None:
    """What lets a model copy from its neighbours' texts; None where nothing is to be copied."""
    if copy == 0:
        return None
    config = model.config
    gate = CopyGate.of(config) if copy is None else CopyGate.constant(copy)
    if gate is None:
        return None
    n = (config.memory_copy or {}).get("neighbours", NEIGHBOURS)
    return Copier(processor, gate, neighbours=n, shares=ranker.shares)


def detach_memory(model: Any, processor: Any) -> None:
    """Take the memory away again: the model answers from its weights alone."""
    model.retriever = model.copier = None
    processor.memory_enabled = False
    processor.query_tokenizer = None


def check_model(model: Any, processor: Any, bank: MemoryBank, k: int | None) -> None:
    """Raise BankError unless the model can use this bank with this k."""
    config = model.config
    if not config.memory_k or config.memory_source != "bank":
        raise BankError(
            f"{bank.folder}: this model was made without retrieved memories (memory_k "
            f"{config.memory_k}, memory_source {config.memory_source!r}); train one with k > 0"
        )
    if k is not None and not 1 <= k <= config.memory_k:
        raise BankError(
            f"{bank.folder}: k = {k} was asked for, this model takes 1 to {config.memory_k} "
            "memories; to answer without memory, do not attach a bank"
        )
    found = config.vision_hash or VisionEncoder.from_model(model, processor).hash
    check_encoder(bank, found)
    wanted = bank.manifest.perceiver_hash
    if config.perceiver_hash != wanted:
        raise BankError(
            f"{bank.folder}: Perceivers differ: the bank's values come from Perceiver {wanted}, "
            f"the model was trained with {config.perceiver_hash or 'none that it names'}; "
            "build a bank with that one"
        )
