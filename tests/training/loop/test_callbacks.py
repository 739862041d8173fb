"""What a person sees of a training that goes on."""

from __future__ import annotations

import logging

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tinyalign.training.loop.callbacks import LINES, Tell, told
from tinyalign.training.metering.throughput import Meter
from tinyalign.training.metering.work import Work

MEASURES = {
    "tokens_per_second": 1234.5,
    "samples_per_second": 9.87,
    "supervised": 0.102,
    "padding": 0.025,
    "data_wait": 0.004,
    "memory_gb": 1.94,
}


def test_measures_in_words() -> None:
    assert told(MEASURES) == (
        "1,234 tokens/s, 9.9 samples/s, 10.2% supervised, 2.5% padding, 0.4% waiting for data, "
        "1.9 GB"
    )
    assert "MFU 38.1%, 1.9 GB" in told({**MEASURES, "mfu": 0.381})


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch) -> list[str]:
    monkeypatch.setattr(logging.getLogger("tinyalign"), "propagate", True)
    caplog.set_level(logging.INFO, logger="tinyalign")
    return caplog.messages


def tell(steps: int, first: int = 0) -> list[tuple[int, str]]:
    """Go through the steps of a stage; returns what the bar was told."""
    bar: list[tuple[int, str]] = []
    meter = Meter()
    callback = Tell("pretrain", meter, lambda n=1, note="": bar.append((n, note)))
    state = TrainerState(max_steps=steps, global_step=first, is_world_process_zero=True)
    arguments, control = TrainingArguments(use_cpu=True, report_to=[]), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    for step in range(first + 1, steps + 1):
        state.global_step = step
        with meter.fetching():
            pass
        meter.add(Work(samples=4, tokens=100, slots=125, supervised_tokens=10))
        callback.on_log(arguments, state, control, {"loss": 2.5, **meter.step()})
    callback.on_log(arguments, state, control, {"eval_loss": 2.0, "eval_samples": 7})
    return bar


def test_some_twenty_lines_a_stage_and_every_step_on_the_bar(caplog, lines) -> None:
    bar = tell(200)
    said = [line for line in caplog.messages if "samples/s" in line]
    assert len(said) == LINES + 1  # the first step has one of its own
    assert said[0].startswith("pretrain: step 1 of 200, loss 2.5000, ")
    assert "10.0% supervised, 20.0% padding" in said[1]
    assert said[-1].endswith("0.0 min left")
    assert caplog.messages[-1].endswith("held-out loss 2.0000 nats a token (7 samples)")
    assert sum(n for n, _ in bar) == 200
    assert bar[1][1].startswith("loss 2.500, ")


def test_a_resumed_stage_starts_where_it_stood(caplog, lines) -> None:
    bar = tell(10, first=7)
    assert bar[0][0] == 7
    assert "step 8 of 10" in caplog.messages[0]
