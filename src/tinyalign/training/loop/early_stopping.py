"""Stopping when the held-out loss no longer falls, and keeping the weights it was lowest with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.log import logger
from tinyalign.memory.bank.files import common_mode

BEST = "best"


@dataclass(frozen=True)
class Verdict:
    """What a stage's evaluations say."""

    best_step: int | None
    """The step with the lowest loss; None before the first evaluation."""
    waited: int
    """Evaluations since then."""


def judge(evaluations: Iterable[tuple[int, float]], min_delta: float = 0.0) -> Verdict:
    """Read (step, loss) in order. A loss is better if it is lower by more than min_delta; one
    that is not finite never is."""
    best_step, lowest, waited = None, math.inf, 0
    for step, loss in evaluations:
        if math.isfinite(loss) and (best_step is None or loss < lowest - min_delta):
            best_step, lowest, waited = step, loss, 0
        else:
            waited += 1
    return Verdict(best_step, waited)


def evaluations(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, held-out loss) of every evaluation in the Trainer's log history."""
    return [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]


class EarlyStopping(TrainerCallback):
    """Asks for the end of a stage after `patience` evaluations without a better loss.

    Its only state is the Trainer's history of evaluations, which every checkpoint holds, and one
    file of trained weights for the best of them, in `folder`. A file that a checkpoint may still
    need is kept until the next checkpoint.
    """

    def __init__(self, patience: int, min_delta: float, folder: Path, saves: bool = True) -> None:
        """saves: whether this process writes the weights, which one of all has to."""
        self.patience, self.min_delta = patience, min_delta
        self.folder = folder / BEST
        self.saves = saves
        self.stopped = False

    def verdict(self, state: TrainerState) -> Verdict:
        """What the evaluations so far say."""
        return judge(evaluations(state.log_history), self.min_delta)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> TrainerControl:
        """Keep the weights if they are the best so far, or count the evaluation against them."""
        verdict = self.verdict(state)
        if verdict.best_step == state.global_step and self.saves:
            save_trained(model, self._path(state.global_step))
            if args.save_strategy == "no":
                self._keep_only(verdict.best_step)
        before_the_end = state.global_step < state.max_steps
        if verdict.waited >= self.patience and before_the_end and not self.stopped:
            self.stopped = True
            logger.info(
                "early stopping: no better held-out loss than that of step %s in %d evaluations, "
                "stopped at step %d of %d",
                verdict.best_step, verdict.waited, state.global_step, state.max_steps,
            )  # fmt: skip
            control.should_training_stop = True
            control.should_save = False  # going on from here would go on past the end
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From now on, no older checkpoint will be gone back to."""
        if self.saves:
            self._keep_only(self.verdict(state).best_step)

    def restore(self, model: nn.Module, state: TrainerState) -> int:
        """Give the model the best weights; returns their step, the last one if none was best."""
        best = self.verdict(state).best_step
        if best is None:
            return state.global_step
        load_trained(model, self._path(best))
        logger.info("early stopping: the weights of step %d are kept", best)
        return best

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _keep_only(self, step: int | None) -> None:
        for path in self.folder.glob("step-*"):
            if step is None or path != self._path(step):
                path.unlink()


def save_trained(model: nn.Module, path: Path) -> None:
    """Write the weights that are trained; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    save_file({n: v.detach().cpu().contiguous() for n, v in _trained(model).items()}, aside)
    common_mode(aside)
    os.replace(aside, path)


@torch.no_grad()
def load_trained(model: nn.Module, path: Path) -> None:
    """Read them back into the same model."""
    trained = _trained(model)
    for name, value in load_file(path).items():
        trained[name].copy_(value)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("module."): parameter  # of DistributedDataParallel
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
