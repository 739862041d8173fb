"""A recipe's model without its numbers: shapes alone, on torch's meta device, nothing downloaded.

Configs come from folders, from the hub's cache on this disk, or from the table in
`model.backbones.public_models`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from tinyalign.data.chat import IMAGE_TOKEN, MEMORY_TOKEN
from tinyalign.errors import ConfigError
from tinyalign.model.backbones import language, vision
from tinyalign.model.backbones.efficientnet_lite import IMAGE_SIZES, EfficientNetLiteConfig
from tinyalign.model.backbones.public_models import LANGUAGES, VISION
from tinyalign.model.configuration import TinyAlignConfig
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.weights.models import memory_settings

N_PLACEHOLDERS = 2


@dataclass(frozen=True)
class Outline:
    """The model of a recipe on the meta device, and what counts its text."""

    model: Any
    tokenizer: Any | None
    """None where it is not on this disk."""
    n_features: int
    """Tokens of the vision tower for one image."""

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(n, D) of one image's features."""
        return self.n_features, self.model.config.vision_width


def outline(recipe: Recipe) -> Outline:
    """The recipe's model as a new one would be: backbones in its dtype, connectors in float32.

    Raises ConfigError, naming the file that is missing, for a backbone whose sizes are unknown.
    """
    args = recipe.model
    text, tokenizer, length, new = language_sizes(args.language)
    text.vocab_size = max(text.vocab_size, length + new)
    tower_config = vision_sizes(args.vision)
    n_features, _ = vision.vision_dims(
        tower_config, args.vision_feature_layer, args.vision_feature_select
    )
    dtype = getattr(torch, args.dtype)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(text)
        llm.tie_weights()
        config = TinyAlignConfig(
            vision_config=tower_config,
            text_config=text,
            memory_k=recipe.memory.k,
            memory_fusion=recipe.memory.fusion,
            vision_feature_layer=args.vision_feature_layer,
            vision_feature_select=args.vision_feature_select,
            connector=args.connector,
            connector_args=args.connector_args,
            lm_head_bias=llm.get_output_embeddings().bias is not None,
            **memory_settings(recipe.memory),
        )
        model = TinyAlignForConditionalGeneration(config)
        model.model.vision_tower = _cast(AutoModel.from_config(tower_config), dtype)
        model.model.language_model = _cast(getattr(llm, llm.base_model_prefix), dtype)
        model.lm_head = llm.get_output_embeddings().to(dtype)
    config.image_seq_length = model.model.multi_modal_projector.n_tokens(n_features)
    return Outline(model, tokenizer, n_features)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In `dtype`, as a checkpoint is loaded: what it doesn't hold (rotary tables) stays."""
    kept = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if name in part._non_persistent_buffers_set
    ]
    module.to(dtype)
    for part, name, buffer in kept:
        part._buffers[name] = buffer
    return module


def vision_sizes(spec: str) -> Any:
    """The config of a vision tower, from this disk or the table. ConfigError where unknown."""
    if spec in vision.PACKAGED:
        variant = spec.removeprefix("efficientnet-")
        return EfficientNetLiteConfig(variant=variant, image_size=IMAGE_SIZES[variant])
    config = _on_disk(spec, AutoConfig.from_pretrained)
    if config is not None:
        return getattr(config, "vision_config", None) or config
    if spec in VISION:
        kind, arguments = VISION[spec]
        return AutoConfig.for_model(kind, **arguments)
    raise _unknown("model.vision", spec, VISION)


def language_sizes(spec: str) -> tuple[Any, Any | None, int, int]:
    """(config, tokenizer or None, its length, placeholders it lacks) of an LLM.

    Raises ConfigError where its sizes are known from nowhere.
    """
    known = LANGUAGES.get(spec)
    if spec not in language.PACKAGED:
        options, name = _gguf(spec)
        config = _on_disk(name, AutoConfig.from_pretrained, **options)
        tokenizer = _on_disk(name, AutoTokenizer.from_pretrained, **options)
        if config is not None and tokenizer is not None:
            there = tokenizer.get_added_vocab()
            new = sum(token not in there for token in (IMAGE_TOKEN, MEMORY_TOKEN))
            return config, tokenizer, len(tokenizer), new
        if config is not None:  # sizes without a tokenizer: its own rows have to do
            length = known.tokenizer_length if known is not None else 0
            return config, None, length, N_PLACEHOLDERS
    if known is None:
        raise _unknown("model.language", spec, LANGUAGES)
    config = AutoConfig.for_model(known.model_type, **known.arguments)
    return config, None, known.tokenizer_length, N_PLACEHOLDERS


def _gguf(spec: str) -> tuple[dict[str, str], str]:
    if not spec.endswith(".gguf"):
        return {}, spec
    return {"gguf_file": Path(spec).name}, str(Path(spec).parent)


def _on_disk(name: str, load: Callable[..., Any], **options: Any) -> Any | None:
    """What `load` finds without asking the hub; None where that is nothing."""
    try:
        return load(name, local_files_only=True, **options)
    except (OSError, ValueError):
        return None


def _unknown(setting: str, spec: str, known: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"{setting} {spec!r}: no config.json of it on this disk, and its sizes are not among "
        f"those known ({', '.join(known)}); name a folder with its config.json, or download it "
        "once"
    )
