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
