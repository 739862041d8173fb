"""What a recipe will take in memory, disk and time, before anything is done."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "Amounts": "tinyalign.training.estimate.estimate",
        "CHARACTERS_A_TOKEN": "tinyalign.training.estimate.estimate",
        "Estimate": "tinyalign.training.estimate.estimate",
        "LOOKED_AT": "tinyalign.training.estimate.estimate",
        "NEIGHBOUR_BYTES": "tinyalign.training.estimate.estimate",
        "Pace": "tinyalign.training.estimate.estimate",
        "Size": "tinyalign.training.estimate.estimate",
        "StageEstimate": "tinyalign.training.estimate.estimate",
        "TOKEN_BYTES": "tinyalign.training.estimate.estimate",
        "amounts_said": "tinyalign.training.estimate.estimate",
        "estimate": "tinyalign.training.estimate.estimate",
        "flops_a_sample": "tinyalign.training.estimate.estimate",
        "key_width": "tinyalign.training.estimate.estimate",
    },
)
