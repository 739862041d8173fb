"""kill -9 at any step, and in the writing of a checkpoint: the run goes on to the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.metering.throughput import MEASURES
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run import train

from .launching import HANGS, finished, said, start

pytestmark = pytest.mark.slow
CLOCKS = {"seconds", "eval_seconds", *MEASURES} - {"supervised", "padding"}


@pytest.fixture
def long_recipe(recipe: Recipe) -> Recipe:
    """12 steps of two micro-batches in two epochs, with memory drop-out, drawn captions and a
    checkpoint every other step."""
    stage = replace(
        recipe.pretrain, epochs=2, micro_batch_size=2, checkpoint_steps=2, language="full"
    )
    source = replace(recipe.data.pretrain, captions="random")
    return replace(
        recipe,
        data=replace(recipe.data, pretrain=source),
        pretrain=stage,
        memory=replace(recipe.memory, drop_probability=0.3),
    )


@pytest.fixture
def whole(long_recipe: Recipe) -> Path:
    """The run that nobody disturbed."""
    return train(replace(long_recipe, output=f"{long_recipe.output}-whole")).folder


def assert_same_bits(one: Path, other: Path) -> None:
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    exact = [[{k: v for k, v in line.items() if k not in CLOCKS} for line in x] for x in lines]
    assert exact[0] == exact[1]
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def kill(recipe: Recipe, where: str, lives: int) -> bool:
    """Train until the process dies there; whether it did."""
    codes = finished(start(recipe, dies=(where, lives)))
    assert codes in ([-signal.SIGKILL], [0]), said(recipe)
    return codes != [0]


def test_killed_again_and_again_in_a_step(long_recipe: Recipe, whole: Path) -> None:
    """Each life gets up to nine micro-batches further, wherever that falls."""
    draw, deaths = random.Random(4), 0
    while kill(long_recipe, "step", draw.randint(5, 9)):
        deaths += 1
    assert deaths >= 3
    assert_same_bits(whole, Path(long_recipe.output))


@pytest.mark.parametrize(
    ("where", "lives", "checkpoint"),
    [
        ("torch.save", 1, None),  # in the first checkpoint's optimiser
        ("torch.save", 6, "checkpoint-2"),  # in the second one's scheduler
        ("state", 1, "checkpoint-2"),  # half of a file
        ("rename", 1, "checkpoint-2"),  # all written, without its name yet
        ("removal", 3, "checkpoint-4"),  # named, and the one before it not gone yet
    ],
)
def test_killed_while_a_checkpoint_is_written(
    long_recipe: Recipe, whole: Path, where: str, lives: int, checkpoint: str | None
) -> None:
    assert kill(long_recipe, where, lives)
    folder = Path(long_recipe.output)
    there = sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))
    assert there[-1:] == ([] if checkpoint is None else [checkpoint])
    train(long_recipe)
    assert_same_bits(whole, folder)
    log = (folder / "log.txt").read_text()
    assert ("going on from" in log) == (checkpoint is not None)
    assert checkpoint is None or f"going on from {checkpoint}\n" in log


def test_killed_from_outside(long_recipe: Recipe, whole: Path) -> None:
    """By whoever looks on, at the moment the seventh step is written down."""
    (process,) = start(long_recipe)
    metrics, until = Path(long_recipe.output) / "metrics.jsonl", time.monotonic() + HANGS
    while process.is_alive() and time.monotonic() < until:
        if any(line["step"] >= 7 for line in read_metrics(metrics)):
            os.kill(process.pid, signal.SIGKILL)
            break
    finished([process])
    train(long_recipe)
    assert_same_bits(whole, Path(long_recipe.output))
