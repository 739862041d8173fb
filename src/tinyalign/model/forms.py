"""The forms of connectors by name: of the image's, and of the memories' (fusion forms).

The forms themselves are in `model.connectors`, which says what one has to look like.
"""

from __future__ import annotations

from typing import Any

from tinyalign.registry import Lazy, Registry

_IMAGE = "tinyalign.model.connectors.image"
_MEMORY = "tinyalign.model.connectors.memory"

IMAGE_CONNECTORS: Registry[Any] = Registry(
    "image connector",
    "tinyalign.image_connectors",
    {
        "linear": Lazy(f"{_IMAGE}:LinearConnector"),
        "mlp2x_gelu": Lazy(f"{_IMAGE}:MLPConnector"),
        "resampler": Lazy(f"{_IMAGE}:Resampler"),
        "pixel_shuffle": Lazy(f"{_IMAGE}:PixelShuffleConnector"),
    },
)
"""Name to class; see `tinyalign.model.connectors.image`."""

FUSIONS: Registry[Any] = Registry(
    "fusion form",
    "tinyalign.fusions",
    {
        "width": Lazy(f"{_MEMORY}:WidthFusion"),
        "sequence": Lazy(f"{_MEMORY}:SequenceFusion"),
    },
)
"""Name to class; see `tinyalign.model.connectors.memory`."""


def register_image_connector(name: str, form: Any) -> None:
    """Let `model.connector` name a form of your own.

    form(vision_width, text_width, token_rms, **connector_args): a module from vision features
    (B, n, D) to image tokens (B, m, d), with `output` (its last linear layer), `n_tokens(n)` and
    `reset_parameters()`.
    """
    IMAGE_CONNECTORS.register(name, form)


def register_fusion(name: str, form: Any) -> None:
    """Let `memory.fusion.form` name a form of your own.

    form(config, **args): a module from values (B, k, L, w), mask (B, k) bool and similarities
    (B, k) to memory tokens (B, T, d), with the static method `n_tokens(config)` and
    `reset_parameters()`.
    """
    FUSIONS.register(name, form)
