"""This project: `train()` with warm caches, timed where the trainer asks for a step's batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from contenders.clock import Enough, StepClock
from contenders.pairs import RECIPE, Task


def run(clock: StepClock, task: Task, without: str | None = None) -> dict[str, Any]:
    """Time a stage; `without` names an optimisation of `ablations` to leave out."""
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train

    stage, settings = task.stage, task.recipe_settings()
    output = task.work / "run"
    settings |= {"output": str(output), f"{stage}.max_steps": clock.warmup + clock.timed + 1}
    if without is not None:
        from contenders.ablations import ABLATIONS

        settings |= ABLATIONS[without].leave_out(stage)
    shutil.rmtree(output, ignore_errors=True)
    with watch(clock) as found, suppress(Enough):
        train(load_recipe(RECIPE, settings), stage, resume=False)
    shutil.rmtree(output, ignore_errors=True)
    return found


@contextmanager
def watch(clock: StepClock) -> Iterator[dict[str, Any]]:
    """Have every trainer of this process tell the clock of its steps.

    Gives a dict that the trained parameters are put into.
    """
    from tinyalign.training.loop.trainer import TinyAlignTrainer
    from tinyalign.training.metering.metrics_log import MetricsLog

    found: dict[str, Any] = {}
    counted: list[int] = []
    get, count = TinyAlignTrainer.get_batch_samples, MetricsLog.count

    def counting(log: Any, samples: int, supervised_tokens: int, *more: Any, **named: Any) -> None:
        counted[:] = [samples, supervised_tokens]
        count(log, samples, supervised_tokens, *more, **named)

    def asking(trainer: Any, *args: Any, **named: Any) -> Any:
        found["trained"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        clock.ask()
        batches, items = get(trainer, *args, **named)
        clock.give(*counted, *tokens_of(batches))
        return batches, items

    MetricsLog.count = counting  # type: ignore[method-assign]
    TinyAlignTrainer.get_batch_samples = asking  # type: ignore[method-assign]
    try:
        yield found
    finally:
        MetricsLog.count = count  # type: ignore[method-assign]
        TinyAlignTrainer.get_batch_samples = get  # type: ignore[method-assign]


def tokens_of(batches: list[dict[str, Any]]) -> tuple[int, int]:
    """Tokens that belong to samples, and tokens computed: what the run's own log counts."""
    from tinyalign.training.metering.work import work_of

    work = work_of(batches)
    return work.tokens, work.slots
