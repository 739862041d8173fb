"""What a result is held against: shuffled and random memories, memories alone."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "RandomMemories": "tinyalign.evaluation.controls.retrievers",
        "ShuffledBank": "tinyalign.evaluation.controls.retrievers",
    },
)
