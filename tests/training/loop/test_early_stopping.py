"""Early stopping: when it stops, and which weights it keeps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import TrainerControl

from tinyalign.errors import ConfigError
from tinyalign.training.loop.early_stopping import (
    EarlyStopping,
    Verdict,
    judge,
    load_trained,
    save_trained,
)
from tinyalign.training.recipe.stage import StageArgs

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=20)


@given(LOSSES)
def test_the_best_step_has_the_first_lowest_loss(losses: list[float]) -> None:
    verdict = judge(enumerate(losses))
    assert verdict.best_step == losses.index(min(losses))
    assert verdict.waited == len(losses) - 1 - verdict.best_step


@given(LOSSES, st.floats(0, 5))
def test_a_margin_only_ever_makes_it_wait_longer(losses: list[float], margin: float) -> None:
    assert judge(enumerate(losses), margin).waited >= judge(enumerate(losses)).waited


def test_a_loss_must_be_lower_by_more_than_the_margin() -> None:
    assert judge([(1, 2.0), (2, 1.5), (3, 1.75)], 0.5) == Verdict(1, 2)
    assert judge([(1, 2.0), (2, 1.5), (3, 1.25)], 0.5) == Verdict(3, 0)
    assert judge([(1, 2.0), (2, 1.25), (3, 1.0)], 0.5) == Verdict(2, 1)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    assert judge([(1, math.nan), (2, 3.0), (3, math.inf)]) == Verdict(2, 1)
    assert judge([(1, math.nan)]) == Verdict(None, 1)


def watch(losses: list[float], patience: int, folder, save_strategy: str = "steps"):
    """A layer whose weights say the step, evaluated once a step."""
    layer, callback = nn.Linear(1, 1), EarlyStopping(patience, 0.0, folder)
    state = SimpleNamespace(log_history=[], global_step=0, max_steps=len(losses))
    control, args = TrainerControl(), SimpleNamespace(save_strategy=save_strategy)
    for step, loss in enumerate(losses, 1):
        state.global_step = step
        with torch.no_grad():
            layer.weight.fill_(step)
        state.log_history.append({"step": step, "eval_loss": loss})
        callback.on_evaluate(args, state, control, model=layer)
        if control.should_training_stop:
            break
    return layer, callback, state, control


def test_it_stops_after_its_patience_and_gives_the_best_weights_back(tmp_path) -> None:
    layer, callback, state, control = watch([3.0, 2.0, 2.1, 2.2, 1.0], 2, tmp_path)
    assert (state.global_step, control.should_training_stop) == (4, True)
    assert callback.restore(layer, state) == 2
    assert layer.weight.item() == 2.0


def test_no_checkpoint_is_written_where_it_stops(tmp_path) -> None:
    """Training would go on from it past the end."""
    layer, callback, state, _ = watch([1.0], 1, tmp_path)
    state.global_step, state.max_steps = 2, 3
    state.log_history.append({"step": 2, "eval_loss": 2.0})
    control = TrainerControl(should_save=True)
    callback.on_evaluate(SimpleNamespace(save_strategy="steps"), state, control, model=layer)
    assert (control.should_training_stop, control.should_save) == (True, False)


def test_a_stage_that_reaches_its_end_was_not_stopped(tmp_path) -> None:
    _, callback, _, control = watch([1.0, 2.0], 1, tmp_path)
    assert not callback.stopped
    assert not control.should_training_stop


def test_weights_that_a_checkpoint_may_need_stay_until_the_next_one(tmp_path) -> None:
    _, callback, state, control = watch([3.0, 2.0, 1.0, 4.0], 3, tmp_path)
    kept = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert kept == [f"step-{n}.safetensors" for n in (1, 2, 3)]
    callback.on_save(None, state, control)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-3.safetensors"]


def test_without_checkpoints_one_file_is_kept(tmp_path) -> None:
    watch([3.0, 2.0, 1.0, 4.0], 3, tmp_path, "no")
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-3.safetensors"]


def test_only_trained_weights_are_kept(tmp_path) -> None:
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    saved = layer.weight.detach().clone()
    save_trained(layer, tmp_path / "a.safetensors")
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(7.0)
    load_trained(layer, tmp_path / "a.safetensors")
    assert torch.equal(layer.weight, saved)
    assert layer.bias.item() == 7.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"early_stopping": 0}, "at least 1"),
        ({"early_stopping": 2, "eval_fractions": [0.5, 1.0]}, "never stops"),
        ({"early_stopping_min_delta": -1.0}, "0 or more"),
        ({"ema_decay": 1.0}, "between 0 and 1"),
    ],
)
def test_a_setting_that_cannot_work_gets_a_sentence(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        StageArgs(**settings)
