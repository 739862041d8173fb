"""metrics.jsonl: one line a step, one line an evaluation; a resumed run carries it on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.memory.bank.files import write_atomically
from tinyalign.training.metering.throughput import MEASURES

STEP_KEYS = ("step", "loss", "learning_rate", "samples", "supervised_tokens", "seconds")
"""The first keys of every step's line; then `tokens` and what `throughput.MEASURES` names."""


class MetricsLog:
    """The file, and the running totals that its lines hold.

    `samples`, `supervised_tokens`, `seconds` and `tokens` count from the start of the stage.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0
        self.supervised_tokens = 0
        self.tokens = 0
        self._before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, evaluations included, pauses between runs left out."""
        return self._before + time.monotonic() - self._started

    def start(self, step: int) -> None:
        """Go on after `step`: drop later lines, take over the totals. Step 0 starts anew."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        last = next((line for line in reversed(kept) if "samples" in line), None)
        if last is not None:
            self.samples, self._before = last["samples"], last["seconds"]
            self.supervised_tokens = last["supervised_tokens"]
            self.tokens = last.get("tokens", 0)  # earlier releases did not count them
        self._started = time.monotonic()

    def count(self, samples: int, supervised_tokens: int, tokens: int = 0) -> None:
        """Add a step's samples and tokens."""
        self.samples += samples
        self.supervised_tokens += supervised_tokens
        self.tokens += tokens

    def step(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        measures: Mapping[str, float] | None = None,
    ) -> None:
        """Write a step's line; measures: what the `Meter` says of the step."""
        values = (step, loss, learning_rate, self.samples, self.supervised_tokens)
        line = dict(zip(STEP_KEYS, (*values, round(self.seconds, 3))))
        self.write({**line, "tokens": self.tokens, **(measures or {})})

    def write(self, line: dict[str, Any]) -> None:
        """Append a line and flush it."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class MetricsCallback(TrainerCallback):
    """Writes the Trainer's logs into a `MetricsLog`, on the first process only."""

    def __init__(self, log: MetricsLog) -> None:
        self.log = log

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Trim the file to the step that training goes on from."""
        if state.is_world_process_zero:
            self.log.start(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A line for a step's loss, or for an evaluation."""
        if not state.is_world_process_zero or logs is None:
            return
        if "loss" in logs:
            measures = {name: logs[name] for name in MEASURES if name in logs}
            self.log.step(state.global_step, logs["loss"], logs["learning_rate"], measures)
        elif "eval_loss" in logs:
            values = {name: value for name, value in logs.items() if name.startswith("eval_")}
            self.log.write({"step": state.global_step, **values})
