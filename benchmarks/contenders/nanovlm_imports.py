"""Stand-ins for what nanoVLM imports and this machine may lack.

torchvision has no build beside a CPU-only torch; of it nanoVLM's loader uses Compose, ToTensor and
resize, of einops one pattern that cuts an image into tiles, of wandb nothing while logging is off.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType
from typing import Any


@contextmanager
def stand_ins() -> Iterator[None]:
    """A stand-in for each missing package while nanoVLM is imported, and no longer: others ask
    whether these packages are there."""
    made = {
        name: module
        for package, modules in _modules().items()
        if importlib.util.find_spec(package) is None
        for name, module in modules.items()
    }
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name)


def _modules() -> dict[str, dict[str, ModuleType]]:
    """Package -> its modules."""
    functional = _module(
        "torchvision.transforms.functional", resize=resize, InterpolationMode=InterpolationMode
    )
    transforms = _module(
        "torchvision.transforms", Compose=Compose, ToTensor=ToTensor, functional=functional
    )
    return {
        "wandb": {"wandb": _module("wandb")},
        "einops": {"einops": _module("einops", rearrange=tiles)},
        "torchvision": {
            "torchvision": _module("torchvision", transforms=transforms),
            "torchvision.transforms": transforms,
            "torchvision.transforms.functional": functional,
        },
    }


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


class InterpolationMode(Enum):
    BICUBIC = "bicubic"


class Compose:
    """One transform after the other."""

    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


class ToTensor:
    """PIL image -> (3, H, W) float32 from 0 to 1."""

    def __call__(self, image: Any) -> Any:
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3)
        return pixels.permute(2, 0, 1).contiguous().float() / 255


def resize(image: Any, size: list[int], interpolation: Any = None) -> Any:
    """A PIL image, bicubic, to [height, width]; as it is where it has that size."""
    from PIL import Image

    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def tiles(image: Any, pattern: str, ph: int, pw: int) -> Any:
    """(B, C, n*ph, m*pw) -> (B*n*m, C, ph, pw): the one pattern that nanoVLM uses."""
    if pattern.replace(" ", "") != "bc(nhph)(nwpw)->(bnhnw)cphpw":
        raise NotImplementedError(f"pip install einops: no stand-in for {pattern!r}")
    batch, channels, height, width = image.shape
    rows, columns = height // ph, width // pw
    grid = image.view(batch, channels, rows, ph, columns, pw)
    # (B, C, n, ph, m, pw) -> (B, n, m, C, ph, pw) -> (B*n*m, C, ph, pw)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch * rows * columns, channels, ph, pw)
