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


SENSES = {  # word: its hypernym
    "entity": None,
    "seat": "entity",
    "chair": "seat",
    "stool": "seat",
    "armchair": "chair",
    "furniture": "entity",
    "man": "entity",
}


@pytest.fixture
def small_wordnet(tmp_path: Path) -> Path:
    """WordNet's three noun files with the senses above; `chair` is a piece of furniture too."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    up = {word: [] if base is None else [base] for word, base in SENSES.items()}
    up["chair"].append("furniture")
    licence, offsets, lines = "  1 licence text\n", {}, []

    def line(word: str) -> str:
        pointers = "".join(f" @ {offsets.get(base, 0):08d} n 0000" for base in up[word])
        start = f"{offsets.get(word, 0):08d} 03 n 01 {word} 0 {len(up[word]):03d}{pointers}"
        return f"{start} | a gloss | with a bar\n"

    position = len(licence)
    for word in up:
        offsets[word] = position
        position += len(line(word))
    lines = [line(word) for word in up]
    (folder / "data.noun").write_text(licence + "".join(lines))
    index = [
        f"{word} n 1 {bool(up[word]):d}{' @' * bool(up[word])} 1 0 {offsets[word]:08d}  \n"
        for word in sorted(up)
    ]
    (folder / "index.noun").write_text(licence + "".join(index))
    (folder / "noun.exc").write_text("women man\n")
    return folder
