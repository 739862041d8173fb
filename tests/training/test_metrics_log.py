"""metrics.jsonl: what others script against."""

from __future__ import annotations

import json
from pathlib import Path

from tinyalign.training.metrics_log import STEP_KEYS, MetricsLog, read_metrics


def written(path: Path, steps: int) -> MetricsLog:
    log = MetricsLog(path)
    log.start(0)
    for step in range(1, steps + 1):
        log.count(4, 10)
        log.step(step, 3.0 - step / 10, 1e-3)
    return log


def test_a_step_has_exactly_these_keys(tmp_path: Path) -> None:
    written(tmp_path / "m.jsonl", 2)
    lines = read_metrics(tmp_path / "m.jsonl")
    assert [tuple(line) for line in lines] == [STEP_KEYS] * 2
    assert (lines[1]["step"], lines[1]["samples"], lines[1]["supervised_tokens"]) == (2, 8, 20)


def test_padding_stands_behind_these_where_it_was_counted(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.start(0)
    log.count(4, 10, computed_tokens=80, padding_tokens=20)
    log.step(1, 3.0, 1e-3)
    (line,) = read_metrics(tmp_path / "m.jsonl")
    assert tuple(line) == (*STEP_KEYS, "padding")
    assert line["padding"] == 0.25


def test_a_resumed_log_drops_later_lines_and_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    written(path, 5)
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    log = MetricsLog(path)
    log.start(3)
    log.count(4, 10)
    log.step(4, 1.0, 1e-3)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["samples"] == 16
    assert lines[-1]["seconds"] >= lines[-2]["seconds"]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    written(tmp_path / "m.jsonl", 3)
    MetricsLog(tmp_path / "m.jsonl").start(0)
    assert read_metrics(tmp_path / "m.jsonl") == []
