"""The four rows that together tell what retrieval did: memory on, off, shuffled, and text alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from tinyalign.data.sample import Sample
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.controls.retrievers import RandomMemories, ShuffledBank
from tinyalign.evaluation.results import results_path
from tinyalign.evaluation.running.runner import Evaluation, evaluate
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.protocols import MemoryRetriever
from tinyalign.vocabulary import EvaluationControl

TEXT_ONLY = "text-only"
ROWS = ("on", "off", "shuffled", TEXT_ONLY)


def with_control(
    retriever: Retriever | None, control: EvaluationControl | Literal["on", "off"], seed: int = 0
) -> MemoryRetriever | None:
    """The retriever that a model is judged with: itself, none, or one whose memories are others.

    "on" is the control "none"; "off" is no memory at all. Raises EvaluationError for other words.
    """
    if retriever is None or control == "off":
        return None
    if control == "shuffled":
        return ShuffledBank(retriever, seed)
    if control == "random":
        return RandomMemories(retriever, seed)
    if control not in ("none", "on"):
        raise EvaluationError(
            f"control: expected one of {', '.join(get_args(EvaluationControl))}, found {control!r}"
        )
    return retriever


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
        control: Any = "off" if text_only else row
        found[row] = evaluate(
            model,
            processor,
            samples,
            retriever=with_control(retriever, control, seed),
            show_image=not text_only,
            out=Path(out) / row,
            seed=seed,
            **settings,
        )
    return found
