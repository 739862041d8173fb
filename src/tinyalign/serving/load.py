"""A trained model with its processor and, if wanted, its memory: what asking and judging need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from tinyalign.errors import BankError, ConfigError, ModelError
from tinyalign.log import logger
from tinyalign.memory.attach import attach_memory
from tinyalign.memory.milvus.address import is_milvus
from tinyalign.memory.open_bank import find_bank
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.device import choose_device
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.model.processing import TinyAlignProcessor
from tinyalign.model.saved import find_model
from tinyalign.vocabulary import RECALL, Engine

Dtype = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, ready to answer."""

    model: Any
    processor: Any
    retriever: Retriever | None
    """Attached to the model already; None without a bank."""
    folder: Path
    """Where the model was found."""


def load(
    model: str | Path,
    bank: str | Path | None = None,
    *,
    k: int | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    recall: float = RECALL,
    copy: float | None = None,
) -> Loaded:
    """Load a TinyAlign model from its folder or its run folder, and attach a bank.

    bank: a bank folder, a run folder, which knows the bank it was trained with, or the Milvus
    URI of a bank. k: memories a question, by default the model's own. device: "auto" takes a GPU
    where there is one. dtype: of tower and LLM, by default as saved; connectors stay float32.
    engine, recall: how the bank is searched; copy: how much is copied from it; see
    `attach_memory`.

    Raises ConfigError where there is no model, ModelError for one that is damaged or another
    kind of model, BankError for a bank that is not the model's.
    """
    where = choose_device(device)
    folder = find_model(model)
    if k is not None and bank is None:
        raise ConfigError(f"k = {k} memories were asked for, but no bank to take them from")
    if bank is None and copy:
        raise ConfigError(f"copy = {copy} was asked for, but no bank to copy from")
    if bank is None and (engine, recall) != ("auto", RECALL):
        raise ConfigError(
            f"engine {engine!r} and recall {recall} say how a bank is searched, but none was "
            "given; name one, or leave them out"
        )
    if bank is not None and not is_milvus(bank) and not Path(bank).is_dir():
        raise BankError(f"{bank}: no such folder; name a memory bank, or a run that used one")
    loaded, processor = _from_folder(folder, dtype)
    loaded.to(where).eval()
    retriever = None
    if bank is not None:
        retriever = attach_memory(
            loaded, processor, find_bank(bank), k, engine=engine, recall=recall, copy=copy
        )
    elif loaded.config.memory_k and loaded.config.memory_source == "bank":
        logger.info(
            "%s was trained with %d memories; without a bank it answers from its weights alone",
            folder, loaded.config.memory_k,
        )  # fmt: skip
    return Loaded(loaded, processor, retriever, folder)


def _from_folder(folder: Path, dtype: Dtype) -> tuple[Any, Any]:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'}: not a model's config ({error})") from error
    wanted = TinyAlignForConditionalGeneration.config_class.model_type
    if kind != wanted:
        raise ModelError(
            f"{folder}: holds a {kind!r} model, expected {wanted!r}, as `tinyalign train` writes it"
        )
    try:
        model = TinyAlignForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        return model, TinyAlignProcessor.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: the model cannot be loaded ({error}); it is incomplete or damaged"
        ) from error
