"""The device that a name stands for."""

from __future__ import annotations

import torch

from tinyalign.errors import ConfigError


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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is multiplied in hardware: if not, float32 is many times faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
