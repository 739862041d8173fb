"""Where training curves go: TensorBoard in the run folder, W&B, trackio."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from tinyalign.errors import ConfigError
from tinyalign.training.recipe.recipe import Recipe, Tracker
from tinyalign.vocabulary import Stage

PROJECT = "tinyalign"
OFFLINE = "or set WANDB_MODE=offline to keep the curves on this machine"


def check_trackers(track: Sequence[Tracker]) -> None:
    """Raise ConfigError for a tracker that is not installed, or that has nowhere to send to."""
    for name in track:
        if name != "tensorboard" and find_spec(name) is None:
            raise ConfigError(
                f"track names {name}, which is not installed; "
                f'pip install "tinyalign-vlm[{name}]", or leave it out of track'
            )
    if "wandb" in track:
        _check_wandb_account()


def _check_wandb_account() -> None:
    import wandb

    offline = wandb.setup().settings.mode != "online"
    if offline or wandb.run is not None or sys.stdin.isatty():  # on a terminal W&B asks by itself
        return
    try:
        known = wandb.login(prompt=False)
    except TypeError:  # releases before 0.31 take no `prompt`
        return
    except wandb.Error as error:
        raise ConfigError(
            f"track names wandb, which does not answer: {error}; {OFFLINE}"
        ) from error
    if not known:
        raise ConfigError(
            f"track names wandb, but there is no account: run `wandb login`; {OFFLINE}"
        )


def add_trackers(trainer: Trainer, recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Let a trainer tell the recipe's trackers, on the first process only.

    folder: the stage's; TensorBoard writes to tensorboard/ and W&B to wandb/ there. A run is
    named after the run folder and the stage, in the project "tinyalign" ($WANDB_PROJECT for W&B).
    """
    trainer.args.run_name = f"{Path(recipe.output).name}-{stage}"
    trainer.args.project = PROJECT
    if not trainer.is_world_process_zero():
        return
    for name in dict.fromkeys(recipe.track):
        for callback in _CALLBACKS[name](trainer.args.run_name, recipe, folder):
            trainer.add_callback(callback)


def _tensorboard(name: str, recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "tensorboard")))]


def _wandb(name: str, recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    import wandb
    from transformers.integrations import WandbCallback

    if wandb.run is not None:  # the caller's own run: theirs to name and to end
        return [WandbCallback()]
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    folder.mkdir(parents=True, exist_ok=True)
    wandb.init(project=project, name=name, dir=folder, config={"recipe": recipe.as_dict()})
    return [WandbCallback(), AtTrainEnd(wandb.finish)]


def _trackio(name: str, recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    from transformers.integrations import TrackioCallback

    return [TrackioCallback()]


_CALLBACKS: dict[str, Callable[[str, Recipe, Path], list[TrainerCallback]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


class AtTrainEnd(TrainerCallback):
    """Calls something when a stage's training is over, so that the next stage is another run."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Call it."""
        self.call()
