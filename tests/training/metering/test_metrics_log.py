"""metrics.jsonl: what others script against."""

from __future__ import annotations

import json
from pathlib import Path

from tinyalign.training.metering.metrics_log import STEP_KEYS, MetricsLog, read_metrics


def written(path: Path, steps: int) -> MetricsLog:
    log = MetricsLog(path)
    log.start(0)
    for step in range(1, steps + 1):
        log.count(4, 10, 60)
        log.step(step, 3.0 - step / 10, 1e-3)
    return log


def test_a_step_has_these_keys_first_and_its_measures_after_them(tmp_path: Path) -> None:
    log = written(tmp_path / "m.jsonl", 2)
    log.step(3, 1.0, 1e-3, {"padding": 0.25})
    lines = read_metrics(tmp_path / "m.jsonl")
    assert [tuple(line) for line in lines[:2]] == [(*STEP_KEYS, "tokens")] * 2
    assert tuple(lines[2]) == (*STEP_KEYS, "tokens", "padding")
    assert (lines[1]["step"], lines[1]["samples"], lines[1]["supervised_tokens"]) == (2, 8, 20)


def test_a_resumed_log_drops_later_lines_and_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    written(path, 5)
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    log = MetricsLog(path)
    log.start(3)
    log.count(4, 10, 60)
    log.step(4, 1.0, 1e-3)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["samples"] == 16
    assert lines[-1]["tokens"] == 240
    assert lines[-1]["seconds"] >= lines[-2]["seconds"]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    written(tmp_path / "m.jsonl", 3)
    MetricsLog(tmp_path / "m.jsonl").start(0)
    assert read_metrics(tmp_path / "m.jsonl") == []


def test_a_log_of_an_earlier_release_is_carried_on(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    values = (1, 3.0, 1e-3, 4, 10, 2.0)
    path.write_text(json.dumps(dict(zip(STEP_KEYS, values))) + "\n")
    log = MetricsLog(path)
    log.start(1)
    log.count(4, 10, 60)
    log.step(2, 2.0, 1e-3)
    assert [read_metrics(path)[1][name] for name in ("samples", "tokens")] == [8, 60]
