"""When to evaluate, and how a person sees the training go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.log import logger
from tinyalign.training.metrics_log import MetricsLog

LINES = 20  # log lines in a stage


def evaluation_steps(fractions: list[float], steps: int) -> set[int]:
    """The steps at which shares of a stage of `steps` steps are reached; 0 is before the first."""
    return {max(1, round(share * steps)) if share else 0 for share in fractions}


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


class Tell(TrainerCallback):
    """Some twenty log lines a stage, and a bar where somebody looks on."""

    def __init__(self, name: str, log: MetricsLog, advance: Callable[[int], None]) -> None:
        self.name, self.log, self.advance = name, log, advance
        self._started = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started = (time.monotonic(), state.global_step)
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
            self.advance(1)
            every = max(1, state.max_steps // LINES)
            if state.global_step % every == 0 or state.global_step == 1:
                self._line(args, state, logs["loss"])

    def _line(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        began, first = self._started
        steps = max(1, state.global_step - first)
        pace = (time.monotonic() - began) / steps
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        logger.info(
            "%s: step %d of %d, loss %.4f, %.1f samples/s, %.1f min left",
            self.name, state.global_step, state.max_steps, loss,
            batch / max(pace, 1e-9), pace * (state.max_steps - state.global_step) / 60,
        )  # fmt: skip
