"""benchmarks/training.py: what is counted, timed, padded and concluded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def part(name: str) -> Any:
    return importlib.import_module(f"contenders.{name}")


def test_the_clock_times_the_steps_after_the_warm_up(monkeypatch: pytest.MonkeyPatch):
    clock = part("clock")
    # Two steps of warm-up, then steps of 2 s and 4 s, of which 0.5 s each is waiting.
    now = iter([0.0, 10.0, 11.0, 20.0, 21.0, 30.0, 30.5, 32.0, 32.5, 36.0])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    watched = clock.StepClock(warmup=2, steps=2)
    for samples in (100, 100, 6, 6):
        watched.ask()
        watched.give(samples, supervised=2 * samples, tokens=8 * samples, computed=10 * samples)
    with pytest.raises(clock.Enough):
        watched.ask()
    found = watched.summary()
    assert found["samples_per_s"] == pytest.approx(12 / 6)
    assert found["supervised_per_s"] == pytest.approx(24 / 6)
    assert found["data_wait"] == pytest.approx(1 / 6)
    assert found["padding"] == pytest.approx(0.2)
    assert found["tokens_per_sample"] == pytest.approx(8)
    assert found["first_step_after_s"] == 10.0
    assert found["step_s"] == [2.0, 4.0]


def test_an_end_is_no_error_that_a_training_loop_would_catch():
    assert not issubclass(part("clock").Enough, Exception)


def test_tokens_of_padding_are_told_from_tokens_of_samples():
    ids = torch.zeros(2, 5)
    masked = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}
    assert part("ours").tokens_of([masked, masked]) == (14, 20)
    assert part("ours").tokens_of([{"input_ids": ids}]) == (10, 10)


def test_the_padded_loop_pads_on_the_right_and_learns_nothing_there():
    items = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids), "pixel_values": torch.ones(3)}
        for ids in ([5, 6, 7], [8])
    ]
    batch = part("padded").padded(items, pad=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert part("padded").counts(batch) == (2, 2, 4, 6)


def cell(contender: str, k: int, *rounds: list[float], **counts: int) -> dict[str, Any]:
    """A contender whose steps of 16 samples took so many seconds, round by round."""
    step = {"samples": 16, "supervised": 32, "tokens": 960, "computed": 1000, **counts}
    shares = {"trained": 1, "padding": 0.04, "data_wait": 0.0, "peak_gb": 1.0}
    made = [{"step_s": seconds, "steps": [step] * len(seconds), **shares} for seconds in rounds]
    return {"contender": contender, "stage": "pretrain", "k": k, "entries": 9, "rounds": made}


def test_memory_is_judged_by_what_it_costs_beyond_its_arithmetic():
    cells = [cell("ours", 0, [1.0, 2.0, 9.0]), cell("ours", 5, [1.5, 3.0, 9.0], computed=1400)]
    counted = {
        "pretrain k=0": {"flops": 100, "computed": 500},
        "pretrain k=5": {"flops": 140, "computed": 700},
    }
    text = part("report").memory_cost(cells, counted)
    assert "takes 1.500 ×" in text
    assert "arithmetic is 1.400 ×" in text
    assert "+7.1 % beyond" in text


def test_arithmetic_follows_the_tokens_of_the_steps_that_were_timed():
    low, high = cell("ours", 0, [1.0], computed=1000), cell("ours", 5, [1.0], computed=1500)
    counted = {"flops": 100, "computed": 500}, {"flops": 140, "computed": 700}
    assert part("report").arithmetic(low, high, *counted) == pytest.approx(1.5)


def test_rates_are_medians_over_all_steps_and_ratios_go_by_the_same_k():
    table = part("report").contender_table([
        cell("ours", 0, [2.0], [2.0]),
        cell("ours", 5, [4.0]),
        cell("padded", 0, [16.0, 4.0], [8.0]),
        cell("release", 5, [16.0]),
    ])  # fmt: skip
    padded, release = table.splitlines()[-2:]
    assert "2.00 (1.00–4.00) | 4.0 |" in padded
    assert padded.endswith("| 4.00 × |")
    assert release.endswith("| 4.00 × |")


def test_every_optimisation_that_is_a_setting_is_one_of_this_version_or_left_out():
    ablations = part("ablations").ABLATIONS
    assert ablations["features"].available
    assert ablations["features"].leave_out("pretrain") == {"data.cache": "none"}
    unknown = part("ablations").Ablation("made up", setting="STAGE.no_such_setting")
    assert not unknown.available


def test_the_stand_in_cuts_tiles_as_the_pattern_says():
    image = torch.arange(2 * 1 * 4 * 6).view(2, 1, 4, 6)
    pattern = "b c (nh ph) (nw pw) -> (b nh nw) c ph pw"
    found = part("nanovlm_imports").tiles(image, pattern, ph=2, pw=3)
    assert found.shape == (8, 1, 2, 3)
    assert torch.equal(found[5, 0], image[1, 0, :2, 3:])
