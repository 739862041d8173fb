"""The rows that together tell what retrieval did.

Memory on, off, shuffled, and text alone; and what the same neighbours answer with no model at all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from tinyalign.data.sample import Sample
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.controls.look_up import LOOK_UPS, look_up
from tinyalign.evaluation.controls.retrievers import RandomMemories, ShuffledBank
from tinyalign.evaluation.results import results_path, write_results
from tinyalign.evaluation.running.runner import Evaluation, evaluate, rescored
from tinyalign.evaluation.running.shards import rank
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.protocols import MemoryRetriever
from tinyalign.vocabulary import EvaluationControl

TEXT_ONLY = "text-only"
ROWS = ("on", "off", "shuffled", TEXT_ONLY)
"""The rows that a model answers; `LOOK_UPS` come beside them."""


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

    Beside them stand the rows of `LOOK_UPS`, which need no model; they are left out where the
    rows were judged without answers. Takes the settings of `evaluate`. Raises EvaluationError
    without a bank, or where `out` is no folder.
    """
    if retriever is None:
        raise EvaluationError("The rows compare a memory with none: they need a bank.")
    if results_path(out) == Path(out):
        raise EvaluationError(f"{out}: every row gets a folder of its own; name a folder for them")
    found: dict[str, Evaluation] = {}
    for row in ROWS:
        text_only = row == TEXT_ONLY
        control: Any = "off" if text_only else row
        own = {**settings, "best_of": 1} if control == "off" else settings
        found[row] = evaluate(
            model,
            processor,
            samples,
            retriever=with_control(retriever, control, seed),
            show_image=not text_only,
            out=Path(out) / row,
            seed=seed,
            **own,
        )
    if not found["on"].missing and found["on"].results.decoding["max_new_tokens"]:
        for kind in LOOK_UPS:
            told = look_up(found["on"].predictions, kind)
            what = {"memory": f"look-up: {kind}", "loss": "none without a model"}
            alone = rescored(found["on"], told, samples, settings.get("scorer"), what)
            if rank() == 0:
                write_results(Path(out) / kind, alone.results, alone.predictions)
            found[kind] = alone
    return found
