"""Our own optimisations, each left out alone: a setting where there is one, else its plain form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Ablation:
    """One optimisation to leave out of stage `stage` with `k` memories."""

    title: str
    stage: str = "pretrain"
    k: int = 0
    setting: str = ""
    """Dotted name; "STAGE" stands for the stage's own settings."""
    value: Any = None
    patch: Callable[[], None] | None = None
    """Puts the plain form in the place of ours, where no setting does."""

    def leave_out(self, stage: str) -> dict[str, Any]:
        """The settings to add; patches this process where a setting does not do."""
        if self.patch is not None:
            self.patch()
        return {self.setting.replace("STAGE", stage): self.value} if self.setting else {}

    @property
    def available(self) -> bool:
        """Whether this version has the setting."""
        from tinyalign.training.recipe.data import DataArgs
        from tinyalign.training.recipe.memory import MemoryArgs
        from tinyalign.training.recipe.model import ModelArgs
        from tinyalign.training.recipe.stage import StageArgs

        if not self.setting:
            return True
        owner, name = self.setting.split(".")
        known = {"data": DataArgs, "model": ModelArgs, "memory": MemoryArgs, "STAGE": StageArgs}
        return name in {field.name for field in fields(known[owner])}


def _full_logits() -> None:
    from tinyalign.training.loop.trainer import TinyAlignTrainer

    plain = TinyAlignTrainer._for_forward

    def every_position(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {**plain(trainer, inputs), "supervised_only": False}

    TinyAlignTrainer._for_forward = every_position  # type: ignore[method-assign]


def _plain_loss() -> None:
    from tinyalign.training.weights import models as parts

    parts.compile_loss = lambda model: None


def _unfused_adamw() -> None:
    from tinyalign.training import stage_run

    plain = stage_run.training_arguments

    def unfused(*args: Any, **named: Any) -> Any:
        arguments = plain(*args, **named)
        arguments.optim = "adamw_torch"
        return arguments

    stage_run.training_arguments = unfused


def _search_every_step() -> None:
    """Query key and exact search for every sample when its item is made, as if live."""
    from tinyalign.memory.perceiver import Perceiver
    from tinyalign.memory.search.index import KeyIndex
    from tinyalign.training import stage_run
    from tinyalign.training.batches.dataset import Neighbours

    plain = stage_run.StageRun._neighbours

    class Searched(Neighbours):
        """Rows found anew; the table says only what is excluded."""

        def item(self, index: int) -> dict[str, Any]:
            features, samples = self.features, self.samples  # type: ignore[attr-defined]
            query = self.perceiver.keys(  # type: ignore[attr-defined]
                features.batch([index]), [samples[index].instruction], None
            )
            rows, scores = self.index.topk(  # type: ignore[attr-defined]
                query, self.k, [self.table.excluded[index]]
            )
            return {
                "memory_values": self.bank.gather(rows[0]),
                "memory_mask": rows[0] >= 0,
                "memory_scores": scores[0],
            }

    def searching(shop: Any, samples: Any, features: Any, *args: Any, **named: Any) -> Any:
        found = plain(shop, samples, features, *args, **named)
        live = Searched(found.bank, found.table, found.k)
        extra = {
            "features": features,
            "samples": samples,
            "compressor": Perceiver.load(found.bank.perceiver_folder),
            "index": KeyIndex(found.bank),
        }
        for name, value in extra.items():
            object.__setattr__(live, name, value)  # it is frozen
        return live

    stage_run.StageRun._neighbours = searching  # type: ignore[method-assign]


def _fused_cells() -> None:
    from tinyalign.model.packing import segments

    segments._rows = lambda x, index: x.index_select(0, index)


def _rows_of_any_length() -> None:
    from tinyalign.training import stage_run

    stage_run.ROW_MULTIPLE = 1  # type: ignore[misc]


def _memory_goes_back() -> None:
    from tinyalign.training import stage_run

    stage_run.keep_freed_memory = lambda: False


ABLATIONS = {
    "features": Ablation(
        "cached vision features (tower at every step)", setting="data.cache", value="none"
    ),
    "tokens": Ablation("cached token ids", setting="data.cache_tokens", value=False),
    "layout": Ablation("packed rows (padded instead)", setting="STAGE.packing", value=False),
    "cells": Ablation(
        "cells of packed rows copied by an operation of its own, on a CPU", patch=_fused_cells
    ),
    "multiple": Ablation("packed rows a multiple of 16 tokens long", patch=_rows_of_any_length),
    "logits": Ablation("logits at supervised positions only", patch=_full_logits),
    "compile": Ablation("compiled layers and loss", setting="model.compile", value="off"),
    "loss": Ablation("the loss compiled, too (layers alone)", patch=_plain_loss),
    "attention": Ablation(
        "eager attention on a CPU", setting="model.attn_implementation", value="sdpa"
    ),
    "adamw": Ablation("fused AdamW (stage 2)", stage="finetune", patch=_unfused_adamw),
    "freed": Ablation(
        "freed memory kept for the next step, on a CPU (stage 2)",
        stage="finetune",
        patch=_memory_goes_back,
    ),
    "table": Ablation("neighbour table (search every step)", k=5, patch=_search_every_step),
}
