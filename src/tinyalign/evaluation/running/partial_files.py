"""An evaluation on its way to disk: judged samples append to a JSONL, so a kill loses one batch.

Each shard or rank has a file of its own in the results' folder, `predictions-I-of-N.partial.jsonl`.
Its first line holds the settings that decide the predictions, every other line a sample by its
index. A run reads the files of all shards: whoever finds every sample judged joins them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.results import Prediction, Skipped, check_same
from tinyalign.evaluation.running.shards import Shard

PATTERN = "predictions-*-of-*.partial.jsonl"


@dataclass
class JudgedPart:
    """Samples by their index in the data set: judged, or skipped with the reason."""

    predictions: dict[int, Prediction] = field(default_factory=dict)
    skipped: dict[int, Skipped] = field(default_factory=dict)

    def update(self, other: JudgedPart) -> None:
        """Take over what `other` holds; who is judged at last no longer counts as skipped."""
        self.predictions.update(other.predictions)
        self.skipped.update(other.skipped)
        for index in self.skipped.keys() & self.predictions.keys():
            del self.skipped[index]

    def missing(self, n: int) -> int:
        """How many of n samples are neither judged nor skipped."""
        return n - len(self.predictions.keys() | self.skipped.keys())

    def lines(self) -> Iterator[str]:
        """One JSON line for each sample."""
        for index, prediction in self.predictions.items():
            yield _line({"index": index, "prediction": asdict(prediction)})
        for index, skipped in self.skipped.items():
            yield _line({"index": index, "skipped": asdict(skipped)})


def part_path(folder: Path, shard: Shard) -> Path:
    """Where a shard's samples are collected."""
    return folder / f"predictions-{shard.index}-of-{shard.count}.partial.jsonl"


def start_part(path: Path, deciding: Mapping[str, Any]) -> None:
    """Make a part ready to be appended to: its first line, or no half-written last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = list(_whole_lines(path))
    if not kept:
        path.write_text(_line({"settings": deciding}), encoding="utf-8")
        return
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) for line in kept))


def append(path: Path, judged: JudgedPart) -> None:
    """Add samples to a part."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(judged.lines())


def read_parts(folder: Path, deciding: Mapping[str, Any]) -> JudgedPart:
    """What all parts in a folder hold together.

    Raises EvaluationError for a part of an evaluation with other settings, naming those.
    """
    found = JudgedPart()
    for path in sorted(folder.glob(PATTERN)):
        found.update(_read_part(path, deciding))
    return found


def _read_part(path: Path, deciding: Mapping[str, Any]) -> JudgedPart:
    found = JudgedPart()
    for number, line in enumerate(_whole_lines(path), 1):
        where = f"{path}, line {number}"
        values = _parsed(line, where)
        if number == 1:
            check_same(path, values.get("settings"), deciding)
        elif "skipped" in values:
            found.skipped[values["index"]] = Skipped(**values["skipped"])
        else:
            text = json.dumps(values["prediction"])
            found.predictions[values["index"]] = Prediction.from_json(text, where)
    return found


def remove_parts(folder: Path) -> None:
    """Drop all parts: they are joined, or the evaluation starts over."""
    for path in folder.glob(PATTERN):
        path.unlink(missing_ok=True)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise EvaluationError(
            f"{where}: damaged, not a line of an evaluation ({error}); delete this file to judge "
            "its samples again"
        ) from error


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines that were written to their end; a later shard may be writing, or was killed."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # joined by another shard meanwhile, or not begun
        return
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        yield line


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
