"""From a recipe to a model: built anew for a first stage, loaded for a second one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.model.build import build_model
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.model.processing import TinyAlignProcessor
from tinyalign.training.recipe.recipe import MemoryArgs, ModelArgs, Recipe

WORTH_COMPILING = 150  # steps


def choose_device(name: str) -> torch.device:
    """The device a recipe names; "auto" is a GPU if there is one. ConfigError without it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError('device is "cuda" but torch finds no GPU; use "auto" or "cpu"')
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown to torch; use auto, cpu or cuda") from error


def attention(model: ModelArgs, device: torch.device) -> str | None:
    """Attention to ask transformers for; None leaves it to the library."""
    if model.attn_implementation != "auto":
        return model.attn_implementation
    return "eager" if device.type == "cpu" else None


def new_model(
    recipe: Recipe, device: torch.device
) -> tuple[TinyAlignForConditionalGeneration, TinyAlignProcessor]:
    """Tower and LLM of a recipe with connectors drawn from its seed."""
    args = recipe.model
    torch.manual_seed(recipe.seed)
    model, processor = build_model(
        args.vision,
        args.language,
        k=recipe.memory.k,
        fusion=recipe.memory.fusion,
        dtype=getattr(torch, args.dtype),
        attn_implementation=attention(args, device),
        template=args.template,
        vision_feature_layer=args.vision_feature_layer,
        vision_feature_select=args.vision_feature_select,
        connector=args.connector,
        connector_args=args.connector_args,
        **memory_settings(recipe.memory),
    )
    model.to(device)  # type: ignore[arg-type]
    return model, processor


def memory_settings(memory: MemoryArgs) -> dict[str, Any]:
    """The fields of TinyAlignConfig that a recipe's memory decides, k and fusion aside."""
    if not memory.k:
        return {}
    return {
        "memory_fusion_args": memory.fusion_args,
        "memory_latents_used": memory.latents_used,
        "memory_hidden_size": memory.hidden_size,
        "memory_linear_skip": memory.linear_skip,
        "memory_word_skip": memory.word_skip,
        "memory_source": "soft_prompt" if memory.control == "soft_prompt" else "bank",
    }


def load_model(
    folder: Path, recipe: Recipe, device: torch.device
) -> tuple[TinyAlignForConditionalGeneration, TinyAlignProcessor]:
    """What `save_model` wrote. ConfigError if it has another k than the recipe."""
    implementation = attention(recipe.model, device)
    options: dict[str, Any] = {}
    if implementation is not None:
        options["attn_implementation"] = {"text_config": implementation}
    model = TinyAlignForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, recipe.model.dtype), **options
    )
    processor = TinyAlignProcessor.from_pretrained(folder)
    if model.config.memory_k != recipe.memory.k:
        raise ConfigError(
            f"{folder}: this model was made for k = {model.config.memory_k}, the recipe has "
            f"memory.k {recipe.memory.k}; use the same, or train stage 1 with it"
        )
    model.to(device)  # type: ignore[arg-type]
    return model, processor


def cast_trained(model: TinyAlignForConditionalGeneration, dtype: str) -> None:
    """Back to how a new model is: backbones in `dtype` (trained ones were float32), all unfrozen.

    The connectors stay float32.
    """
    model.requires_grad_(True).eval()
    for part in (model.model.vision_tower, model.model.language_model, model.lm_head):
        part.to(getattr(torch, dtype))


def save_model(
    model: TinyAlignForConditionalGeneration, processor: TinyAlignProcessor, folder: Path
) -> None:
    """Write model and processor as `from_pretrained` reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def find_model(path: str | Path) -> Path:
    """The model folder of a run folder, or of a folder that is one. ConfigError otherwise."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(f"{path}: no model there; expected a run folder, or one with a config.json")


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
