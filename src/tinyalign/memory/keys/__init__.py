"""What entries are found by: key functions, their registry and what they may see."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "FORMAT_VERSION": "tinyalign.memory.keys.image_text",
        "NOISE_FLOOR": "tinyalign.memory.keys.image_text",
        "PROJECTION_SEED": "tinyalign.memory.keys.image_text",
    },
    old={
        "KeyKind": "tinyalign.vocabulary:KeyKind",
        "KeyFunction": "tinyalign.memory.keys.image_text:ImageTextKeyFunction",
    },
)
