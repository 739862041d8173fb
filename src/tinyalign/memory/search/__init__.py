"""Finding entries: exact and approximate search, the retriever, neighbour tables."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "BF16_ERROR": "tinyalign.memory.search.exact",
        "BLOCK": "tinyalign.memory.search.exact",
        "ExactSearch": "tinyalign.memory.search.exact",
        "FP32_ERROR": "tinyalign.memory.search.exact",
        "GROUP": "tinyalign.memory.search.exact",
        "MARGIN": "tinyalign.memory.search.exact",
        "check_search": "tinyalign.memory.search.exact",
        "exact_topk": "tinyalign.memory.search.exact",
        "grouped_topk": "tinyalign.memory.search.exact",
        "nothing": "tinyalign.memory.search.exact",
        "rescored": "tinyalign.memory.search.exact",
        "rough_dtype": "tinyalign.memory.search.exact",
        "rough_scores": "tinyalign.memory.search.exact",
    },
)
