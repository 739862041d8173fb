"""When to evaluate, and how a person sees the training go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.log import Advance, logger
from tinyalign.training.metering.throughput import Meter
from tinyalign.training.metering.work import Work
from tinyalign.training.recipe.stage import evaluation_steps

LINES = 20  # log lines in a stage


class EvaluateAt(TrainerCallback):
    """Asks for an evaluation at the given shares of the steps."""

    def __init__(self, fractions: list[float], evaluate: Callable[[], Any]) -> None:
        """evaluate: called for share 0, before the first step."""
        self.fractions = fractions
        self.evaluate = evaluate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate before the first step, if wanted."""
        if 0.0 in self.fractions and state.global_step == 0:
            self.evaluate()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask the Trainer for an evaluation at the steps wanted."""
        if state.global_step in evaluation_steps(self.fractions, state.max_steps):
            control.should_evaluate = True
        return control


class CheckpointsAsAsked(TrainerCallback):
    """Writes checkpoints as often as the stage now says: a resumed Trainer goes on with the
    interval that its checkpoint has noted."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the interval, in steps, from the arguments."""
        state.compute_steps(args, state.max_steps)


class Tell(TrainerCallback):
    """Some twenty log lines a stage, and a bar where somebody looks on."""

    def __init__(self, name: str, meter: Meter, advance: Advance) -> None:
        """name: the stage; meter: the trainer's."""
        self.name, self.meter, self.advance = name, meter, advance
        self._first: tuple[float, int] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the bar where a resumed run stands."""
        self.advance(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One line for a step now and then, and for every evaluation."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            without = logs.get("eval_loss_without_memory")
            logger.info(
                "%s: step %d of %d, held-out loss %.4f nats a token%s (%d samples)",
                self.name, state.global_step, state.max_steps, logs["eval_loss"],
                "" if without is None else f", {without:.4f} without memory",
                logs["eval_samples"],
            )  # fmt: skip
        elif "loss" in logs:
            self.advance(1, _note(logs))
            first = self._first is None
            every = max(1, state.max_steps // LINES)
            if first or state.global_step % every == 0:
                self._line(state, logs["loss"])
            if self._first is None:
                self._first = (time.monotonic(), state.global_step)

    def _line(self, state: TrainerState, loss: float) -> None:
        window = self.meter.window()
        logger.info(
            "%s: step %d of %d, loss %.4f, %s, %.1f min left",
            self.name, state.global_step, state.max_steps, loss,
            told(self.meter.measures(window)), self._seconds_left(state, window) / 60,
        )  # fmt: skip

    def _seconds_left(self, state: TrainerState, window: Work) -> float:
        """By the pace since the first step (which compiles, and warms caches), evaluations too."""
        pace = window.seconds / max(1, window.steps)
        if self._first is not None:
            began, step = self._first
            pace = (time.monotonic() - began) / (state.global_step - step)
        return pace * (state.max_steps - state.global_step)


def told(measures: Mapping[str, float]) -> str:
    """A meter's measures in words, as a log line has them."""
    parts = [
        f"{measures['tokens_per_second']:,.0f} tokens/s",
        f"{measures['samples_per_second']:.1f} samples/s",
        f"{measures['supervised']:.1%} supervised",
        f"{measures['padding']:.1%} padding",
        f"{measures['data_wait']:.1%} waiting for data",
    ]
    if "mfu" in measures:
        parts.append(f"MFU {measures['mfu']:.1%}")
    parts.append(f"{measures['memory_gb']:.1f} GB")
    return ", ".join(parts)


def _note(logs: Mapping[str, float]) -> str:
    """A few words beside the bar."""
    if "tokens_per_second" not in logs:
        return f"loss {logs['loss']:.3f}"
    return f"loss {logs['loss']:.3f}, {logs['tokens_per_second']:,.0f} tokens/s"
