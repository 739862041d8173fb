"""Benchmarks by name."""

from __future__ import annotations

import importlib
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.base import Benchmark

BENCHMARKS: dict[str, tuple[str, str]] = {
    "gqa": ("gqa", "Gqa"),
    "vqav2": ("vqav2", "Vqav2"),
    "textvqa": ("textvqa", "TextVqa"),
    "pope": ("pope", "Pope"),
    "scienceqa": ("scienceqa", "ScienceQa"),
    "mmmu": ("mmmu", "Mmmu"),
    "mme": ("mme", "Mme"),
    "mm-vet": ("mmvet", "MmVet"),
    "containment": ("containment", "Containment"),
    "captions": ("captions", "Captions"),
    "easy-vqa": ("easy_vqa", "EasyVqa"),
    "daquar": ("daquar", "Daquar"),
}
"""Name to module and class; a module is imported when its benchmark is asked for."""


def get_benchmark(name: str, **settings: Any) -> Benchmark:
    """The benchmark of that name.

    `settings` are its own: `judge` of mm-vet, `wordnet` and `wups` of daquar.
    """
    if name not in BENCHMARKS:
        raise EvaluationError(f"No benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    module, cls = BENCHMARKS[name]
    found = getattr(importlib.import_module(f"{__package__}.{module}"), cls)
    try:
        return found(**settings)
    except TypeError as error:
        raise EvaluationError(
            f"{found.title} does not take {', '.join(settings)}: leave those settings out."
        ) from error
