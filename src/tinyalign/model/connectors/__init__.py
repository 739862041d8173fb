"""From features to the LLM's tokens: of images, and of memories (fusion forms)."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "Connector": "tinyalign.model.connectors.image",
        "LinearConnector": "tinyalign.model.connectors.image",
        "MLPConnector": "tinyalign.model.connectors.image",
        "PixelShuffleConnector": "tinyalign.model.connectors.image",
        "Resampler": "tinyalign.model.connectors.image",
        "build_connector": "tinyalign.model.connectors.image",
        "draw_linear": "tinyalign.model.connectors.image",
        "match_scale": "tinyalign.model.connectors.image",
        "rms": "tinyalign.model.connectors.image",
    },
    old={
        "CONNECTORS": "tinyalign.model.forms:IMAGE_CONNECTORS",
    },
)
