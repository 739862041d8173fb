"""From a recipe to a model: built anew for a first stage, loaded for a second one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tinyalign.errors import ConfigError
from tinyalign.model.build import build_model
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.model.processing import TinyAlignProcessor
from tinyalign.training.recipe.memory import MemoryArgs
from tinyalign.training.recipe.model import ModelArgs
from tinyalign.training.recipe.recipe import Recipe


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
        fusion=recipe.memory.fusion.form,
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
        "memory_fusion_args": memory.fusion.args,
        "memory_latents_used": memory.fusion.latents_used,
        "memory_hidden_size": memory.fusion.hidden_size,
        "memory_linear_skip": memory.fusion.linear_skip,
        "memory_word_skip": memory.fusion.word_skip,
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
