"""What a step is made of: items, streams, micro-batches, memory drop-out."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "EvaluationBatches": "tinyalign.training.batches.evaluation",
    },
)
