"""The model as it is part way, saved beside the final one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.training.recipe.stage import evaluation_steps
from tinyalign.training.weights.freeze import part_of_parameters

CONNECTORS = ("image connector", "memory connector")


class SaveModelAt(TrainerCallback):
    """Writes `folder`/model-STEP, a model that `from_pretrained` loads, at shares of the steps."""

    def __init__(self, fractions: list[float], folder: Path, processor: Any, dtype: str) -> None:
        """dtype: the precision that backbones are saved in; connectors stay float32."""
        self.fractions, self.folder, self.processor = fractions, folder, processor
        self.dtype: torch.dtype = getattr(torch, dtype)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Save at the steps wanted."""
        wanted = evaluation_steps(self.fractions, state.max_steps)
        if state.is_world_process_zero and state.global_step in wanted:
            out = self.folder / f"model-{state.global_step}"
            model.save_pretrained(out, state_dict=self._weights(model))
            self.processor.save_pretrained(out)

    def _weights(self, model: Any) -> dict[str, torch.Tensor]:
        """The model's weights, those of trained backbones back in their own precision."""
        owner = part_of_parameters(model)
        cast: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
        weights: dict[str, torch.Tensor] = {}
        for name, value in model.state_dict().items():
            if owner.get(name) not in CONNECTORS:
                value = cast.setdefault(value.data_ptr(), value.to(self.dtype))
            weights[name] = value
        return weights
