"""Training a recipe: one stage or both, from raw pairs to a model folder. `train` is the door."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.memory.open_bank import MEMORY_NOTE
from tinyalign.model.device import choose_device
from tinyalign.training.machine.launch import first_goes_first, is_first, join, wait_for_all
from tinyalign.training.machine.precision import check_machine
from tinyalign.training.metering.tracking import check_trackers
from tinyalign.training.preflight import check_paths
from tinyalign.training.recipe.files import save_recipe
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run_folder import RunFolder, StageResult, run_log
from tinyalign.training.stage_run import StageRun
from tinyalign.training.weights.adapters import check_installed
from tinyalign.vocabulary import Stage


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    model: Path
    """Loads with `from_pretrained`."""
    bank: Path | None
    """The bank it was trained with; None without one."""
    stages: tuple[StageResult, ...]


def train(
    recipe: Recipe, stage: Literal["both", "pretrain", "finetune"] = "both", resume: bool = True
) -> RunResult:
    """Train a recipe's stages and write its run folder.

    The folder gets config.yaml (everything, resolved), metrics.jsonl, eval-STEP.jsonl, model/,
    tensorboard/ and log.txt; see `RunFolder` for where stages lie. A run that was interrupted
    goes on where its last checkpoint stands, and comes to the same weights; a finished stage is
    not run again. resume=False starts over. Under `accelerate launch` or `torchrun` all processes
    call this and train together; the first one writes.

    "both" of a recipe without stage-2 data is stage 1 alone. Raises ConfigError for stage 2
    without data or without a model to start from, for an output that holds another run or that
    another process trains into, and for trackers, packages, precisions and kernels that this
    machine lacks; DataError and BankError for paths of any of these stages with nothing there. All
    of this comes before the first model is built, and ConfigError for adapters of layers that the
    LLM lacks right after.
    """
    check_trackers(recipe.track)
    check_machine(recipe.model, choose_device(recipe.device))
    folder = RunFolder(recipe)
    stages = _stages(recipe, stage)
    to_do = [name for name in stages if not (resume and folder.finished(name))]
    check_paths(recipe, folder, to_do)
    for name in to_do:
        check_installed(getattr(recipe, name))
    join(choose_device(recipe.device))
    with ExitStack() as held:
        with first_goes_first():
            if is_first():
                folder.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(folder.held())
                for name in stages:
                    folder.open_stage(name, resume)
        with _log(folder):
            results = [_train_stage(recipe, folder, name) for name in stages]
            logger.info("model: %s", folder.model)
        wait_for_all()
    return RunResult(folder.path, folder.model, _noted_bank(folder), tuple(results))


def _train_stage(recipe: Recipe, folder: RunFolder, stage: Stage) -> StageResult:
    done = folder.finished(stage)
    if done is not None:
        logger.info("%s: finished already, %d steps", stage, done.steps)
    else:
        done = StageRun(recipe, folder, stage).run()
    if is_first():
        folder.gather(stage)
    return done


@contextmanager
def _log(folder: RunFolder) -> Iterator[None]:
    """The run's log, and its recipe; of several processes the first alone writes them."""
    if not is_first():
        logger.setLevel(logging.WARNING)
        yield
        return
    with run_log(folder.path / "log.txt"):
        save_recipe(folder.recipe, folder.path / "config.yaml")
        yield


def _stages(recipe: Recipe, stage: str) -> list[Stage]:
    if stage not in ("both", "pretrain", "finetune"):
        raise ConfigError(f"stage must be both, pretrain or finetune, found {stage!r}")
    if stage == "finetune" and recipe.data.finetune is None:
        raise ConfigError("stage finetune needs data.finetune, the conversations to learn from")
    if stage == "both":
        return ["pretrain"] if recipe.data.finetune is None else ["pretrain", "finetune"]
    return ["pretrain"] if stage == "pretrain" else ["finetune"]


def _noted_bank(folder: RunFolder) -> Path | None:
    note = folder.path / MEMORY_NOTE
    if not note.is_file():
        return None
    return Path(json.loads(note.read_text(encoding="utf-8"))["bank"])
