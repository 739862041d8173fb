"""Precision, attention and optimiser kernels: what the machine can do, in the Trainer's terms.

`model.dtype` is the precision of what is frozen, and of the arithmetic of what is trained; trained
weights themselves are float32. In bfloat16 autocast is on where a large part is trained: small
connectors alone compute in float32. In float16 it is always on, with loss scaling, because the
gradients that pass through a frozen LLM would vanish without.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.model.device import multiplies_bfloat16
from tinyalign.training.machine.launch import zero_on_cpu
from tinyalign.training.recipe.model import ModelArgs

FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def check_machine(model: ModelArgs, device: torch.device) -> None:
    """Raise ConfigError for a precision, attention or loss that cannot run here."""
    if model.dtype == "float16" and device.type == "cpu":
        raise ConfigError(
            'model.dtype float16 needs a GPU for its loss scaling; on a CPU use "bfloat16" or '
            '"float32"'
        )
    if model.dtype == "bfloat16" and zero_on_cpu(device):
        raise ConfigError("DeepSpeed trains in float32 on CPUs: set model.dtype to float32")
    _check_attention(model, device)
    if model.cross_entropy == "liger":
        _check_liger(device)
    if model.dtype == "bfloat16" and device.type == "cuda" and not _has_bfloat16():
        logger.warning("this GPU has no bfloat16 units; model.dtype float16 is faster on it")
    if model.dtype == "bfloat16" and device.type == "cpu" and not multiplies_bfloat16(device):
        logger.warning(
            "this CPU does not multiply bfloat16; model.dtype float32 is many times faster on it"
        )


def _has_bfloat16() -> bool:
    return torch.cuda.get_device_capability()[0] >= 8


def _check_attention(model: ModelArgs, device: torch.device) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.attn_implementation
    known = sorted({"auto", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    if name not in known and "/" not in name:  # a name with a slash is a kernel on the hub
        raise ConfigError(
            f"model.attn_implementation {name!r} is unknown; it is one of {', '.join(known)}"
        )
    package = FLASH_PACKAGES.get(name)
    if package is None:
        return
    if device.type != "cuda":
        raise ConfigError(f'{name} runs on GPUs only; use "sdpa" or "auto" on {device.type}')
    if model.dtype == "float32":
        raise ConfigError(f"{name} computes in 16 bits only; set model.dtype to bfloat16")
    if find_spec(package) is None and find_spec("kernels") is None:
        raise ConfigError(
            f"model.attn_implementation {name} needs the package flash-attn, which is not "
            'installed; pip install flash-attn --no-build-isolation, or use "sdpa"'
        )


def _check_liger(device: torch.device) -> None:
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "model.cross_entropy liger needs the package liger-kernel, which is not installed; "
            'pip install "tinyalign-vlm[liger]", or use "chunked", which needs nothing'
        )
    if device.type != "cuda":
        raise ConfigError(
            f'model.cross_entropy liger runs on GPUs only; use "chunked" on {device.type}'
        )


def mixed_precision(dtype: str, trains_large: bool) -> dict[str, Any]:
    """The Trainer's arguments for `model.dtype`; trains_large: the LLM or the tower is trained."""
    return {"bf16": trains_large and dtype == "bfloat16", "fp16": dtype == "float16"}


def adamw(device: torch.device) -> str:
    """The Trainer's name for AdamW: one fused kernel where torch has it."""
    return "adamw_torch_fused" if device.type in ("cpu", "cuda") else "adamw_torch"
