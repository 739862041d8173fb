"""What a step's measures are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.training.metering import throughput
from tinyalign.training.metering.flops import ModelFlops
from tinyalign.training.metering.throughput import MEASURES, Meter
from tinyalign.training.metering.work import Work, work_of

FLOPS = ModelFlops(token=10.0, supervised=100.0, image=1000.0, memory=0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until its hand is moved."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def one_step(meter: Meter, clock: list[float], work: Work, wait: float, compute: float) -> dict:
    with meter.fetching():
        clock[0] += wait
    meter.add(work)
    clock[0] += compute
    return meter.step()


WORK = Work(samples=4, supervised_tokens=30, tokens=300, slots=400, images=4)


def test_a_step_says_its_rates_shares_and_mfu(clock) -> None:
    measures = one_step(Meter(flops=FLOPS, peak=1e4), clock, WORK, wait=0.5, compute=1.5)
    assert tuple(measures) == MEASURES
    assert measures["tokens_per_second"] == 150.0
    assert measures["samples_per_second"] == 2.0
    assert measures["supervised"] == 0.1
    assert measures["padding"] == 0.25
    assert measures["data_wait"] == 0.25
    assert measures["mfu"] == (10 * 300 + 100 * 30 + 1000 * 4) / 2.0 / 1e4
    assert measures["memory_gb"] > 0.01


def test_mfu_is_left_out_where_the_peak_is_unknown(clock) -> None:
    assert "mfu" not in one_step(Meter(flops=FLOPS), clock, WORK, 0.1, 0.1)


def test_time_between_steps_is_nobodys(clock) -> None:
    """An evaluation, or a checkpoint."""
    meter = Meter()
    first = one_step(meter, clock, WORK, 0.5, 1.5)
    clock[0] += 1000
    assert one_step(meter, clock, WORK, 0.5, 1.5) == pytest.approx(first, abs=0.1)
    window = meter.window()
    assert (window.steps, window.tokens, window.seconds) == (2, 600, 4.0)
    assert meter.window() == Work()


def test_work_of_padded_batches() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    batch = {
        "input_ids": torch.zeros(2, 3), "attention_mask": mask, "index": torch.arange(2),
        "vision_features": torch.zeros(1, 4, 8),
    }  # fmt: skip
    assert work_of([batch, batch]) == Work(samples=4, tokens=8, slots=12, images=2)


def test_work_of_a_packed_batch_counts_samples_not_rows() -> None:
    batch = {"input_ids": torch.zeros(1, 9), "index": torch.arange(3)}
    work = work_of([batch])
    assert (work.samples, work.tokens, work.padding) == (3, 9, 0.0)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 10))
def test_shares_lie_between_0_and_1(tokens: int, padding: int, supervised: int) -> None:
    work = Work(tokens=tokens, slots=tokens + padding, supervised_tokens=min(supervised, tokens))
    assert 0 <= work.padding <= 1
    assert 0 <= work.supervised <= 1
    assert (work + work).padding == pytest.approx(work.padding)


def test_memory_grows_with_what_is_held() -> None:
    meter = Meter()
    before = meter.measures(Work())["memory_gb"]
    held = torch.ones(60_000_000)
    assert meter.measures(Work())["memory_gb"] >= before + 0.2
    del held
