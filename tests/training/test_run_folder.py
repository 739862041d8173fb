"""What a run folder protects: everything that training made, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run_folder import CACHE_NOTE, RunFolder, fingerprint, run_log


def begun(recipe: Recipe) -> tuple[RunFolder, RunFolder]:
    """The folder of a run that was begun, and the same folder for a recipe with another seed."""
    folder = RunFolder(recipe)
    folder.open_stage("pretrain", resume=True)
    return folder, RunFolder(replace(recipe, seed=recipe.seed + 1))


def test_a_run_that_came_to_nothing_gives_way_to_other_settings(recipe: Recipe) -> None:
    folder, other = begun(recipe)
    (folder.path / CACHE_NOTE).write_text('{"chosen": "pixels"}')
    (folder.path / "metrics.jsonl").touch()
    other.open_stage("pretrain", resume=True)
    settings = json.loads((folder.path / "settings.json").read_text())
    assert settings["seed"] == recipe.seed + 1
    assert settings["data"]["cache"] == "auto"
    assert not (folder.path / CACHE_NOTE).exists()


def test_the_same_settings_keep_the_cache_that_was_chosen(recipe: Recipe) -> None:
    folder, _ = begun(recipe)
    (folder.path / CACHE_NOTE).write_text('{"chosen": "pixels"}')
    folder.open_stage("pretrain", resume=True)
    assert json.loads((folder.path / CACHE_NOTE).read_text()) == {"chosen": "pixels"}


@pytest.mark.parametrize("made", ["metrics.jsonl", "finished.json", "model/config.json"])
def test_what_was_trained_is_protected(recipe: Recipe, made: str) -> None:
    folder, other = begun(recipe)
    path = folder.path / made
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"other settings \(seed 1 -> 2\)"):
        other.open_stage("pretrain", resume=True)
    assert path.is_file()
    other.open_stage("pretrain", resume=False)
    assert not path.exists()


OTHERWISE = {
    "micro_batch_size": 1,
    "micro_tokens": 100,
    "gradient_checkpointing": True,
    "eval_batch_size": 3,
    "checkpoint_steps": 7,
    "keep_checkpoints": 2,
}


def noted_and_trained(recipe: Recipe) -> Path:
    """The settings of a run that has trained a step."""
    folder, _ = begun(recipe)
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder.path / "settings.json"


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_only_shares_a_step_out_otherwise_may_differ(recipe: Recipe, name: str) -> None:
    noted_and_trained(recipe)
    stage = replace(recipe.pretrain, **{name: OTHERWISE[name]})
    other = replace(recipe, pretrain=stage)
    RunFolder(other).open_stage("pretrain", resume=True)
    assert fingerprint(other, "pretrain") == fingerprint(recipe, "pretrain")


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 8), ("learning_rate", 0.5), ("ema_decay", 0.9)]
)
def test_what_decides_the_weights_may_not(recipe: Recipe, name: str, value: float) -> None:
    noted_and_trained(recipe)
    other = replace(recipe, pretrain=replace(recipe.pretrain, **{name: value}))
    with pytest.raises(ConfigError, match=rf"other settings \(pretrain\.{name} "):
        RunFolder(other).open_stage("pretrain", resume=True)


def test_a_release_that_noted_free_settings_is_understood(recipe: Recipe) -> None:
    note = noted_and_trained(recipe)
    settings = json.loads(note.read_text())
    settings["pretrain"] |= {"micro_batch_size": 2, "checkpoint_steps": 3}
    note.write_text(json.dumps(settings))
    RunFolder(recipe).open_stage("pretrain", resume=True)


def test_the_log_file_says_why_a_run_stopped_and_the_terminal_hears_it_from_the_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    with pytest.raises(ConfigError), run_log(tmp_path / "log.txt"):
        raise ConfigError("no such thing")
    assert "stopped: ConfigError: no such thing" in (tmp_path / "log.txt").read_text()
    assert "no such thing" not in caplog.text
