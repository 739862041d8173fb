"""A run folder: where things lie, what may be resumed, and what was finished."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyalign.errors import ConfigError
from tinyalign.hashing import hash_json
from tinyalign.log import logger
from tinyalign.memory.bank.files import write_atomically
from tinyalign.settings import differences, filled
from tinyalign.training.loop.early_stopping import BEST
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.data import DataArgs, DataSource
from tinyalign.training.recipe.memory import BankArgs, MemoryArgs
from tinyalign.training.recipe.old_names import with_new_names
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.weights.checkpoints import last_checkpoint
from tinyalign.vocabulary import Stage

FINISHED = "finished.json"
CHECKPOINTS = "checkpoints"
CACHE_NOTE = "cache.json"
LOCK = "run.lock"
LAST_WORKERS = 10  # seconds that data workers may outlive a run that was killed
ADAPTER = "adapter"
# What may differ between a run and its resumption without a change to its result beyond the
# order of sums. Checkpoints keep the position in optimiser steps (a stream's in samples), so a
# resumed run may split its steps into other micro-batches.
FREE = ("output", "device", "track")
FREE_DATA = ("workers", "cache_folder", "cache_tokens")
FREE_STAGE = (
    "save_fractions",
    "packing",
    "micro_batch_size",
    "micro_tokens",
    "eval_batch_size",
    "gradient_checkpointing",
    "checkpoint_steps",
    "keep_checkpoints",
    "rehearse",
)


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    stage: Stage
    steps: int
    samples: int
    supervised_tokens: int
    seconds: float
    """Training time, evaluations included; caches and banks not."""
    trained_parameters: int
    eval_loss: float | None
    """Of the saved weights, by the last evaluation up to their step; nats a supervised token."""
    fingerprint: str
    """Hash of the settings that decided it."""
    eval_loss_without_memory: float | None = None
    """The same with no memory tokens in the sequence, where that was measured."""
    kept_step: int | None = None
    """The step whose weights were saved: the last one, or the best with early stopping."""
    stopped_early: bool = False
    """Whether early stopping ended it before its last step."""


class RunFolder:
    """Layout: a recipe with two stages keeps each in a folder of its own, pretrain/ and
    finetune/; a recipe with one keeps it at the top. config.yaml, log.txt, metrics.jsonl and
    model/ (of the last stage run) are at the top in any case.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = Path(recipe.output)
        self.two_stages = recipe.data.finetune is not None

    @property
    def model(self) -> Path:
        """The model of the last stage run."""
        return self.path / "model"

    def stage(self, stage: Stage) -> Path:
        """The folder of a stage."""
        return self.path / stage if self.two_stages else self.path

    def stage_model(self, stage: Stage) -> Path:
        """The model after a stage."""
        return self.stage(stage) / "model"

    def adapter(self, stage: Stage) -> Path:
        """The unmerged adapters of a stage that trained some."""
        return self.stage(stage) / ADAPTER

    def finished(self, stage: Stage) -> StageResult | None:
        """What a finished stage recorded; None where it is not finished."""
        path = self.stage(stage) / FINISHED
        if not path.is_file() or not (self.stage_model(stage) / "config.json").is_file():
            return None
        return StageResult(**json.loads(path.read_text(encoding="utf-8")))

    def finish(self, result: StageResult) -> None:
        """Record a finished stage; its checkpoints and best weights are no longer needed."""
        folder = self.stage(result.stage)
        write_atomically(folder / FINISHED, json.dumps(asdict(result), indent=2).encode())
        for name in (CHECKPOINTS, BEST):
            shutil.rmtree(folder / name, ignore_errors=True)

    def last_checkpoint(self, stage: Stage) -> Path | None:
        """The newest complete checkpoint of a stage."""
        return last_checkpoint(self.stage(stage) / CHECKPOINTS)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains into this folder meanwhile. ConfigError where somebody does.

        The system lets go of the lock when a process and its data workers have died.
        """
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=LAST_WORKERS)
        except Timeout as error:
            raise ConfigError(
                f"{self.path}: another process is training into this folder; wait until it is "
                "done, or give this run another output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def open_stage(self, stage: Stage, resume: bool) -> None:
        """Make a stage's folder ready: clear it, or check that what is there may be resumed.

        Raises ConfigError, naming the settings that differ, if another recipe trained here; one
        that came to nothing leaves nothing to protect.
        """
        folder = self.stage(stage)
        if not resume:
            self._start_over(stage)
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "settings.json"
        now = json.loads(json.dumps(deciding(self.recipe, stage)))
        if note.is_file():
            before, _ = with_new_names(json.loads(note.read_text(encoding="utf-8")))
            before = filled(without_free(before), deciding(_defaults(), stage))
            self._settle_cache(before["data"], now["data"])
            different = differences(before, now)
            if different and self._trained(stage):
                raise ConfigError(
                    f"{folder}: holds a run with other settings ({'; '.join(different[:4])}); "
                    "choose another output, or start over with --no-resume (resume=False)"
                )
            if different:
                self._start_over(stage)
                now = json.loads(json.dumps(deciding(self.recipe, stage)))
        write_atomically(note, json.dumps(now, indent=2).encode())

    def _start_over(self, stage: Stage) -> None:
        self._clear(self.stage(stage))
        if stage == "pretrain":  # the second stage goes on with the caches of the first
            (self.path / CACHE_NOTE).unlink(missing_ok=True)

    def _trained(self, stage: Stage) -> bool:
        """Whether a stage's folder holds anything that training made."""
        folder = self.stage(stage)
        return (
            self.last_checkpoint(stage) is not None
            or (folder / FINISHED).is_file()
            or (folder / "model").is_dir()
            or bool(read_metrics(folder / "metrics.jsonl"))
        )

    def _settle_cache(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Put the cache that a run began with in the place of "auto", in the settings of both."""
        note = self.path / CACHE_NOTE
        began = before.get("cache", "auto")
        if began == "auto":
            noted = json.loads(note.read_text("utf-8")) if note.is_file() else {}
            began = noted.get("chosen", now["cache"])
        if now["cache"] == "auto" and began != "auto":
            now["cache"] = began
            if not note.is_file():
                write_atomically(note, json.dumps({"chosen": began}).encode())
        before["cache"] = began

    def _clear(self, folder: Path) -> None:
        snapshots = [path.name for path in folder.glob("model-[0-9]*")]
        for name in (CHECKPOINTS, BEST, ADAPTER, "model", "tensorboard", *snapshots):
            shutil.rmtree(folder / name, ignore_errors=True)
        for pattern in (
            FINISHED,
            "settings.json",
            "metrics.jsonl",
            "eval-*.jsonl",
            "skipped.json*",
        ):
            for path in folder.glob(pattern):
                path.unlink()

    def gather(self, stage: Stage) -> None:
        """Bring a two-stage run's metrics and its last model to the top."""
        if not self.two_stages:
            return
        lines: list[dict[str, Any]] = []
        stages: list[Stage] = ["pretrain", "finetune"]
        for name in stages[: stages.index(stage) + 1]:
            before = [line for line in lines if "samples" in line]
            lines += [
                _carried_on(line, before[-1] if before else None)
                for line in read_metrics(self.stage(name) / "metrics.jsonl")
            ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.path / "metrics.jsonl").write_text(text, encoding="utf-8")
        for source, target in (
            (self.stage_model(stage), self.model),
            (self.adapter(stage), self.path / ADAPTER),
        ):
            shutil.rmtree(target, ignore_errors=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link)


def _carried_on(line: dict[str, Any], last: dict[str, Any] | None) -> dict[str, Any]:
    if last is None:
        return line
    counters = ("step", "samples", "supervised_tokens", "seconds", "tokens")
    return {k: round(v + last.get(k, 0), 3) if k in counters else v for k, v in line.items()}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def deciding(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The settings that decide a stage's result."""
    settings = without_free(recipe.as_dict())
    other = "finetune" if stage == "pretrain" else "pretrain"
    if stage == "pretrain":
        for name in (other, "start_from"):
            settings.pop(name)
        settings["data"].pop("finetune")
        settings["data"].pop("finetune_eval")
    return settings


def without_free(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings less those that are free; an earlier release may have noted some of them."""
    free: dict[str, tuple[str, ...]] = {
        "data": FREE_DATA,
        "pretrain": FREE_STAGE,
        "finetune": FREE_STAGE,
    }
    return {
        name: {k: v for k, v in value.items() if k not in free[name]} if name in free else value
        for name, value in settings.items()
        if name not in FREE
    }


def fingerprint(recipe: Recipe, stage: Stage) -> str:
    """Hash of the settings that decide a stage's result."""
    return hash_json(deciding(recipe, stage))


def _defaults() -> Recipe:
    """A recipe with every setting at its default, and every data source there to have some."""
    source = DataSource("")
    data = DataArgs(source, finetune=source, pretrain_eval=source, finetune_eval=source)
    return Recipe(data=data, memory=MemoryArgs(bank=BankArgs(data=source)))


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Write the package's log to a file as well, for as long as the run lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        # Into the file alone: whoever called gets the error itself, and says it.
        said = ("stopped: %s: %s", (type(error).__name__, error), None)
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, *said))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
