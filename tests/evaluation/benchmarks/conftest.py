"""Small files in the benchmarks' own formats, and scoring them in one call."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.scoring import score_files


@pytest.fixture
def write(tmp_path: Path):
    """`write("name", value)`: a JSON file, or one value a line where the name ends in .jsonl."""

    def put(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, str):
            path.write_text(value, encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(each) + "\n" for each in value), encoding="utf-8")
        else:
            path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return put


@pytest.fixture
def metrics_of():
    """`metrics_of("gqa", predictions, references)`: metric values by name."""

    def score(name: str, predictions: Path, references: Path | None = None, **more: Any):
        protocol, ocr = more.pop("protocol", "llava-1.5"), more.pop("ocr", None)
        missing = more.pop("missing", "error")
        benchmark = get_benchmark(name, **more)
        found = score_files(
            benchmark,
            predictions,
            references,
            benchmark.protocol(protocol, ocr),
            missing=missing,
        )
        return {key: metric.value for key, metric in found.results.metrics.items()}

    return score


def answered(texts: Iterable[tuple[Any, str]]) -> list[dict[str, Any]]:
    """LLaVA's records."""
    return [{"question_id": key, "text": text} for key, text in texts]
