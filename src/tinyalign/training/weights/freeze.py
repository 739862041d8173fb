"""Freezing a stage's parts, and an exact account of what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tinyalign.log import logger
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.weights.adapters import adapter_parameters, add_adapters, full_size

Part = Literal["vision tower", "image connector", "memory connector", "language model"]


@dataclass(frozen=True)
class PartReport:
    """One part of the model: how many of its numbers are trained."""

    name: Part
    trained: int
    frozen: int
    dtype: str
    adapters: int = 0
    """How many of the trained numbers belong to adapters."""


@dataclass(frozen=True)
class FreezeReport:
    """All parts; a parameter shared by two is counted once."""

    parts: tuple[PartReport, ...]

    @property
    def trained(self) -> int:
        """Trained numbers in all."""
        return sum(part.trained for part in self.parts)

    @property
    def frozen(self) -> int:
        """Frozen numbers in all."""
        return sum(part.frozen for part in self.parts)

    def lines(self) -> list[str]:
        """One sentence a part."""
        return [
            f"{part.name}: {part.trained:,} trained{' in adapters' if part.adapters else ''}, "
            f"{part.frozen:,} frozen ({part.dtype})"
            for part in self.parts
        ]


def parts_of(model: Any) -> Iterator[tuple[Part, nn.Module]]:
    """The parts of a TinyAlign model; the LLM's head belongs to the language model."""
    yield "vision tower", model.model.vision_tower
    yield "image connector", model.model.multi_modal_projector
    if model.model.memory_connector is not None:
        yield "memory connector", model.model.memory_connector
    yield "language model", model.model.language_model
    yield "language model", model.lm_head


def part_of_parameters(model: Any) -> dict[str, Part]:
    """Name of every parameter → the part it belongs to."""
    owner: dict[int, Part] = {}
    for part, module in parts_of(model):
        for parameter in module.parameters():
            owner.setdefault(id(parameter), part)
    return {name: owner[id(parameter)] for name, parameter in model.named_parameters()}


def freeze(model: Any, stage: StageArgs, seed: int = 0, *, tell: bool = True) -> FreezeReport:
    """Set what is trained as the stage has it; trained parts become float32.

    An LLM in mode lora or qlora gets its adapters here, drawn with `seed`. Returns the exact
    account, and logs it where `tell` is set.
    """
    if stage.adapts:
        add_adapters(model, stage, seed)
    mode = {
        "vision tower": stage.vision,
        "image connector": stage.connectors,
        "memory connector": stage.connectors,
        "language model": stage.language,
    }
    for part, module in parts_of(model):
        trained = mode[part] == "full"
        if trained:
            module.to(torch.float32)
        module.requires_grad_(trained)
    if stage.adapts:
        for parameter in adapter_parameters(model):
            parameter.requires_grad_(True)
    report = account(model)
    for line in report.lines() if tell else ():
        logger.info("%s", line)
    return report


def account(model: Any) -> FreezeReport:
    """How many numbers of each part are trained and frozen now."""
    counts: dict[Part, list[int]] = {}
    dtypes: dict[Part, set[str]] = {}
    owner = part_of_parameters(model)
    adapters = {id(parameter) for parameter in adapter_parameters(model)}
    for name, parameter in model.named_parameters():
        row = counts.setdefault(owner[name], [0, 0, 0])
        size = full_size(parameter)
        row[0 if parameter.requires_grad else 1] += size
        row[2] += size if id(parameter) in adapters else 0
        dtypes.setdefault(owner[name], set()).add(_dtype(parameter))
    return FreezeReport(
        tuple(
            PartReport(part, trained, frozen, ", ".join(sorted(dtypes[part])), in_adapters)
            for part, (trained, frozen, in_adapters) in counts.items()
        )
    )


def _dtype(parameter: nn.Parameter) -> str:
    state = getattr(parameter, "quant_state", None)
    return str(parameter.dtype).removeprefix("torch.") if state is None else str(state.quant_type)


def frozen_modules(model: Any) -> list[nn.Module]:
    """The parts with nothing to train: these stay in evaluation mode."""
    return [
        module
        for _, module in parts_of(model)
        if not any(parameter.requires_grad for parameter in module.parameters())
    ]
