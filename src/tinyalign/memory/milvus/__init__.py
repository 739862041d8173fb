"""A bank's keys searched by a Milvus deployment."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "ANY": "tinyalign.memory.milvus.index",
        "ERROR": "tinyalign.memory.milvus.index",
        "MARGIN": "tinyalign.memory.milvus.index",
        "MilvusIndex": "tinyalign.memory.milvus.index",
    },
)
