"""The four rows that together tell what retrieval did: memory on, off, shuffled, and text alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tinyalign.data.sample import Sample
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.controls.retrievers import RandomMemories, ShuffledBank
from tinyalign.evaluation.results import results_path
from tinyalign.evaluation.running.runner import Evaluation, evaluate
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.protocols import MemoryRetriever

MemoryMode = Literal["on", "off", "shuffled", "random"]
TEXT_ONLY = "text-only"
ROWS = ("on", "off", "shuffled", TEXT_ONLY)


def with_mode(
    retriever: Retriever | None, mode: MemoryMode, seed: int = 0
) -> MemoryRetriever | None:
    """The retriever that a memory mode uses: itself, none, or one whose memories are others."""
    if retriever is None or mode == "off":
        return None
    if mode == "shuffled":
        return ShuffledBank(retriever, seed)
    return RandomMemories(retriever, seed) if mode == "random" else retriever


def evaluate_rows(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    retriever: Retriever | None,
    out: str | os.PathLike[str],
    seed: int = 0,
    **settings: Any,
) -> dict[str, Evaluation]:
    """`evaluate` with each of `ROWS`, in a folder each: `out`/on, `out`/off, and so on.

    Takes the settings of `evaluate`. Raises EvaluationError without a bank, or where `out` is
    no folder.
    """
    if retriever is None:
        raise EvaluationError("The rows compare a memory with none: they need a bank.")
    if results_path(out) == Path(out):
        raise EvaluationError(f"{out}: every row gets a folder of its own; name a folder for them")
    found: dict[str, Evaluation] = {}
    for row in ROWS:
        text_only = row == TEXT_ONLY
        mode: Any = "off" if text_only else row
        found[row] = evaluate(
            model,
            processor,
            samples,
            retriever=with_mode(retriever, mode, seed),
            show_image=not text_only,
            out=Path(out) / row,
            seed=seed,
            **settings,
        )
    return found
