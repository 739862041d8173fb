"""Where curves go: each tracker gets every measure; a missing one is said before anything runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinyalign.errors import ConfigError
from tinyalign.training.metering import tracking
from tinyalign.training.metering.throughput import MEASURES
from tinyalign.training.metering.tracking import check_trackers
from tinyalign.training.recipe.files import load_recipe, save_recipe
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run import train
from tinyalign.training.run_folder import deciding


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_with_its_extra_before_anything_is_made(
    recipe: Recipe, name: str, monkeypatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf'pip install "tinyalign-vlm\[{name}\]"'):
        train(replace(recipe, track=["tensorboard", name]))
    assert not Path(recipe.output).exists()


@pytest.mark.parametrize(
    ("mode", "login", "says"),
    [
        ("online", lambda prompt: False, "run `wandb login`; or set WANDB_MODE=offline"),
        ("online", lambda prompt: 1 / 0, "does not answer: division by zero; or set WANDB_MODE"),
        ("online", lambda prompt: True, None),
        ("online", lambda: True, None),
        ("offline", lambda prompt: False, None),
    ],
)
def test_wandb_without_an_account_is_said(mode: str, login, says: str | None, monkeypatch) -> None:
    settings = SimpleNamespace(mode=mode)
    wandb = SimpleNamespace(
        run=None, login=login, Error=ZeroDivisionError,
        setup=lambda: SimpleNamespace(settings=settings),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(tracking, "find_spec", lambda package: object())
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    if says is None:
        check_trackers(["wandb"])
    else:
        with pytest.raises(ConfigError, match=says):
            check_trackers(["wandb"])


def test_the_same_run_may_be_tracked_elsewhere_when_it_is_resumed(recipe: Recipe) -> None:
    assert deciding(recipe, "pretrain") == deciding(replace(recipe, track=[]), "pretrain")


@pytest.mark.slow
def test_tensorboard_has_every_measure_and_no_tracker_writes_none(recipe: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    silent = train(replace(recipe, track=[], output=f"{recipe.output}-silent"))
    assert not (silent.folder / "tensorboard").exists()
    events = EventAccumulator(str(train(recipe).folder / "tensorboard"))
    events.Reload()
    shown = set(events.Tags()["scalars"])
    assert {"train/loss", "eval/loss", *(f"train/{name}" for name in MEASURES[:-1])} <= shown
    assert len(events.Scalars("train/padding")) == 6


RUN = """
import sys
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.run import train
train(load_recipe(sys.argv[1]))
"""


def tracked(recipe: Recipe, tmp_path: Path, name: str, **environment: str) -> Path:
    """Train in a process of its own, with nothing of the caller's account; returns its folder."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    file = tmp_path / "recipe.yaml"
    save_recipe(replace(recipe, track=[name]), file)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(file)], env={**os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(load_recipe(file).output)


@pytest.mark.slow
def test_wandb_offline_has_a_run_for_each_stage(two_stage_recipe: Recipe, tmp_path: Path) -> None:
    folder = tracked(two_stage_recipe, tmp_path, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    for stage in ("pretrain", "finetune"):
        runs = list((folder / stage / "wandb").glob("offline-run-*/*.wandb"))
        assert len(runs) == 1
        written = runs[0].read_bytes()
        assert b"train/tokens_per_second" in written
        assert f"{folder.name}-{stage}".encode() in written


@pytest.mark.slow
def test_trackio_keeps_the_curves_on_this_machine(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "trackio"
    tracked(recipe, tmp_path, "trackio", TRACKIO_DIR=str(folder))
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for name in ("train/tokens_per_second", "eval/loss", f"{Path(recipe.output).name}-pretrain"):
        assert name.encode() in written
