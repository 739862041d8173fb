"""Low-rank adapters on the LLM (LoRA, QLoRA): put on, saved as peft reads them, and merged.

They are put into the model in place, so that it stays a TinyAlign model and everything else of
training runs as it does without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.memory.bank.files import common_mode
from tinyalign.training.recipe.stage import LoraArgs, StageArgs

ADAPTER = "default"  # peft's name of an adapter that was given none
LANGUAGE_MODEL = "model.language_model"


def check_installed(stage: StageArgs) -> None:
    """Raise ConfigError if a stage's adapters need a package that is not there."""
    packages = {"lora": ("peft",), "qlora": ("peft", "bitsandbytes")}.get(stage.language, ())
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"language {stage.language} needs {package}, which is not installed; "
                f'`pip install "tinyalign-vlm[{"peft" if package == "peft" else "qlora"}]"`'
            )


def check_targets(model: Any, stage: StageArgs) -> None:
    """Raise ConfigError if a stage's adapters are for layers that the LLM does not have."""
    if stage.adapts:
        target_pattern(model.get_submodule(LANGUAGE_MODEL), stage.lora)


def add_adapters(model: Any, stage: StageArgs, seed: int = 0) -> None:
    """Put new adapters on the LLM's linear layers, for `qlora` after quantising those.

    An adapter starts as nothing: B is 0, and A depends on `seed` alone. Raises ConfigError for a
    missing package, or for targets that the LLM has no layer of.
    """
    check_installed(stage)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=stage.lora.r,
        lora_alpha=stage.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=stage.lora.dropout,
        target_modules=target_pattern(model.get_submodule(LANGUAGE_MODEL), stage.lora),
    )
    if stage.language == "qlora":
        quantize_linears(model.get_submodule(LANGUAGE_MODEL), model.dtype)
        model.is_loaded_in_4bit = True  # what peft asks before it looks at a layer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTER)
    vars(model).pop("is_loaded_in_4bit", None)
    for parameter in adapter_parameters(model):
        parameter.data = parameter.data.float()


def target_pattern(language_model: nn.Module, args: LoraArgs) -> str:
    """A regular expression that matches the full names of the layers that get an adapter."""
    there = {name.rpartition(".")[2] for name, _ in _linears(language_model)}
    wanted = there if args.targets is None else set(args.targets)
    unknown = sorted(wanted - there)
    if unknown:
        raise ConfigError(
            f"lora.targets: the LLM has no linear layers called {', '.join(unknown)}; it has "
            f"{', '.join(sorted(there))}"
        )
    names = "|".join(re.escape(name) for name in sorted(wanted))
    return rf"{re.escape(LANGUAGE_MODEL)}\..*\b({names})"


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, Conv1D)):
            yield name, layer


def linear_weights(module: nn.Module) -> list[Tensor]:
    """The weights that `quantize_linears` would keep in 4 bits."""
    return [layer.weight for _, layer in _linears(module) if isinstance(layer, nn.Linear)]


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The numbers of all adapters in a module; none where there is no adapter."""
    return [value for name, value in module.named_parameters() if ".lora_" in name]


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """Name and layer of everything that wears an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(n, layer) for n, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]


# -- four bits ------------------------------------------------------------------------------------


def quantize_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace linear layers by 4-bit ones: NF4 with double quantisation, as QLoRA has them
    (Dettmers et al. 2023, section 3); they compute in `dtype`. Weights stay on their device."""
    import bitsandbytes as bnb

    for name, layer in list(_linears(module)):
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"language qlora: {name} is a {type(layer).__name__}, which cannot be kept in 4 "
                "bits; use language lora"
            )
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None,
            compute_dtype=dtype, compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
        small.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        small.bias = layer.bias
        # Its CPU kernel for inference repacks weights in place: evaluation would change training.
        small.support_avx512bf16_for_cpu = False
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, small.to(layer.weight.device))


def full_size(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for; one in 4 bits holds two to a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def _unquantized(layer: nn.Module) -> nn.Module:
    """A linear layer with the very weights that a 4-bit one computes with."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer
    from bitsandbytes.functional import dequantize_4bit

    plain: Any = nn.Linear(1, 1, bias=False, dtype=state.dtype)
    plain.out_features, plain.in_features = state.shape
    plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, state), requires_grad=False)
    plain.bias = layer.bias
    return plain


# -- what is kept ---------------------------------------------------------------------------------


def merge_adapters(model: Any) -> None:
    """Add every adapter to its layer's weight, W + (alpha / r) B A, and take it off.

    The sum is taken in float32 and rounded once, to the layer's dtype.
    """
    layers = _adapted(model)
    for name, layer in layers:
        base: Any = _unquantized(layer.get_base_layer())
        delta = layer.get_delta_weight(ADAPTER)
        with torch.no_grad():
            base.weight.data = (base.weight.float() + delta.float()).to(base.weight.dtype)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, base)
    vars(model).pop("peft_config", None)
    logger.info("adapters: merged into %d layers of the language model", len(layers))


def save_adapter(model: Any, stage: StageArgs, folder: Path, base: str) -> None:
    """Write the unmerged adapters, and with them the parts that were trained whole.

    `peft.PeftModel.from_pretrained(start, folder)` gives the trained model, `start` being the
    model that the stage started from; `base` is written down as where that one is.
    """
    whole = [
        name
        for name, mode in (
            ("multi_modal_projector", stage.connectors),
            ("memory_connector", stage.connectors),
            ("vision_tower", stage.vision),
        )
        if mode == "full" and getattr(model.model, name) is not None
    ]
    state: dict[str, Tensor] = {
        name.replace(f".{ADAPTER}.", "."): value
        for name, value in model.state_dict().items()
        if ".lora_" in name or name.startswith(tuple(f"model.{part}." for part in whole))
    }
    config = replace(model.peft_config[ADAPTER], modules_to_save=whole or None)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
    weights = {f"base_model.model.{n}": v.detach().cpu().contiguous() for n, v in state.items()}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    common_mode(folder / "adapter_model.safetensors")
