"""Compiling the LLM's layers and the loss for a stage, and undoing it."""

from __future__ import annotations

import shutil

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tinyalign.log import logger
from tinyalign.model.modeling import TinyAlignForConditionalGeneration

WORTH_COMPILING = 150  # steps


def _compiles(wanted: str, steps: int) -> bool:
    """Whether a stage of so many steps runs compiled, as the recipe and this machine have it."""
    if wanted == "off" or (wanted == "auto" and steps < WORTH_COMPILING):
        return False
    return wanted == "on" or _has_compiler()


def compile_layers(model: TinyAlignForConditionalGeneration, wanted: str, steps: int) -> bool:
    """Compile the LLM's layers and the loss if the recipe wants it; returns whether it did."""
    if not _compiles(wanted, steps):
        if wanted == "auto" and steps >= WORTH_COMPILING:
            logger.info("compile: no C++ compiler here, so the LLM runs as it is")
        return False
    layers = [
        module
        for module in model.model.language_model.modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    compile_loss(model)
    logger.info(
        "compile: %d layers and the loss; the first steps take some 25 s longer", len(layers)
    )
    return True


def compile_loss(model: TinyAlignForConditionalGeneration) -> None:
    """Cross-entropy in two passes over the logits, without copies of them in float32."""
    model.loss_function = torch.compile(model.loss_function, dynamic=True)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "cl"))


def undo_compile(model: TinyAlignForConditionalGeneration) -> None:
    """Give compiled layers their own forward back, and the model its loss."""
    vars(model).pop("_loss_function", None)
    for module in model.model.language_model.modules():
        vars(module).pop("forward", None)
