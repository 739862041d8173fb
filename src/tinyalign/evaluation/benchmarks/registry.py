"""Benchmarks by name."""

from __future__ import annotations

from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.base import Benchmark
from tinyalign.registry import Lazy, Registry

_OWN = {
    "gqa": "gqa:Gqa",
    "vqav2": "vqav2:Vqav2",
    "textvqa": "textvqa:TextVqa",
    "pope": "pope:Pope",
    "scienceqa": "scienceqa:ScienceQa",
    "mmmu": "mmmu:Mmmu",
    "mme": "mme:Mme",
    "mm-vet": "mmvet:MmVet",
    "containment": "containment:Containment",
    "captions": "captions:Captions",
    "easy-vqa": "easy_vqa:EasyVqa",
    "daquar": "daquar:Daquar",
}

BENCHMARKS: Registry[type[Benchmark]] = Registry(
    "benchmark",
    "tinyalign.benchmarks",
    {name: Lazy(f"{__package__}.{where}") for name, where in _OWN.items()},
    EvaluationError,
)
"""Name to class; a module is imported when its benchmark is asked for."""


def register_benchmark(name: str, benchmark: type[Benchmark]) -> None:
    """Let `evaluate --benchmark` and `score --benchmark` name a benchmark of your own."""
    BENCHMARKS.register(name, benchmark)


def get_benchmark(name: str, **settings: Any) -> Benchmark:
    """The benchmark of that name.

    `settings` are its own: `judge` of mm-vet, `wordnet` and `wups` of daquar.
    """
    found = BENCHMARKS[name]
    try:
        return found(**settings)
    except TypeError as error:
        raise EvaluationError(
            f"{found.title} does not take {', '.join(settings)}: leave those settings out."
        ) from error
