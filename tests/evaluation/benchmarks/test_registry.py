"""What every benchmark has, whichever it is."""

from __future__ import annotations

import dataclasses

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark

PAPER = {"gqa", "vqav2", "textvqa", "pope", "scienceqa", "mmmu", "mme", "mm-vet"}


def test_the_papers_eight_are_there():
    assert set(BENCHMARKS) > PAPER


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_what_it_is_and_how_it_is_asked(name: str):
    benchmark = get_benchmark(name)
    assert benchmark.name == name
    assert benchmark.title
    assert benchmark.files
    assert benchmark.rule
    assert benchmark.protocol() is benchmark.protocols["llava-1.5"]
    for key, protocol in benchmark.protocols.items():
        assert protocol.name == key
        assert protocol.version
        assert protocol.decoding == "greedy"
        assert set(protocol.as_dict()) == {f.name for f in dataclasses.fields(protocol)}


@pytest.mark.parametrize("name", sorted(PAPER | {"captions"}))
def test_the_papers_benchmarks_have_both_protocols(name: str):
    assert {"llava-1.5", "lmms-eval"} <= set(get_benchmark(name).protocols)


def test_what_does_not_exist_is_refused_with_what_does():
    with pytest.raises(EvaluationError, match=r"benchmark: expected one of gqa.*found 'qga'"):
        get_benchmark("qga")
    with pytest.raises(EvaluationError, match=r"no protocol 'llava'; it has llava-1\.5"):
        get_benchmark("gqa").protocol("llava")
    with pytest.raises(EvaluationError, match="no OCR tokens"):
        get_benchmark("gqa").protocol(ocr=True)
    with pytest.raises(EvaluationError, match="GQA does not take judge"):
        get_benchmark("gqa", judge=None)
