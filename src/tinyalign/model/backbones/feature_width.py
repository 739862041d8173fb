"""How wide the features of a vision tower are, by its configuration alone."""

from __future__ import annotations

from typing import Any

from tinyalign.errors import ModelError


def feature_width(config: Any, layer: int | list[int] = -1) -> int:
    """Width D of the features of `layer`: the hidden size times the number of layers taken."""
    sizes = getattr(config, "hidden_sizes", None)
    hidden = getattr(config, "hidden_size", None) or (sizes[-1] if sizes else None)
    if hidden is None:
        raise ModelError(f"The vision config {config.model_type!r} states no hidden size.")
    return hidden * (1 if isinstance(layer, int) else len(layer))
