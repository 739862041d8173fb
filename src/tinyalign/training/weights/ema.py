"""Averaged weights: an exponential moving average over the steps of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.errors import ConfigError

AVERAGE, UPDATES = "average", "average_updates"


def decay_at(update: int, decay: float) -> float:
    """The decay of the n-th update: min(decay, (1 + n) / (10 + n)), so that the first weights are
    forgotten in a short stage too (as TensorFlow's ExponentialMovingAverage counts updates)."""
    return min(decay, (1 + update) / (10 + update))


class AveragedWeights(TrainerCallback):
    """average = d average + (1 - d) weight after every step, for trained weights only.

    The first update takes the weights as they are. Averages lie beside the optimiser's moments,
    under the same parameters: a checkpoint of the optimiser holds them too, and training that
    goes on from it has the same ones to the bit.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take the step's weights in. ConfigError if the checkpoint held no averages."""
        if UPDATES not in optimizer.param_groups[0] and state.global_step > 1:
            raise ConfigError(
                f"ema_decay {self.decay}: the checkpoint of step {state.global_step - 1} holds no "
                "averaged weights to go on from; start over with --no-resume"
            )
        self.update(optimizer)

    @torch.no_grad()
    def update(self, optimizer: Any) -> None:
        """Take in the weights as they are now."""
        group = optimizer.param_groups[0]
        group[UPDATES] = group.get(UPDATES, 0) + 1
        weight = 1 - decay_at(group[UPDATES], self.decay)
        for parameter, own in _states(optimizer):
            if AVERAGE in own:
                own[AVERAGE].lerp_(parameter, weight)
            else:
                own[AVERAGE] = parameter.detach().clone()

    @contextmanager
    def applied(self, optimizer: Any) -> Iterator[None]:
        """The model has its averaged weights inside, its own again after."""
        self.swap(optimizer)
        try:
            yield
        finally:
            self.swap(optimizer)

    @torch.no_grad()
    def swap(self, optimizer: Any) -> None:
        """Exchange weights and averages. Nothing happens before the first step."""
        for parameter, own in _states(optimizer):
            if AVERAGE in own:
                kept = parameter.detach().clone()
                parameter.copy_(own[AVERAGE])
                own[AVERAGE].copy_(kept)


def _states(optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Each parameter and what the optimiser keeps for it; one without a step so far is left out,
    since it is where it was, and AdamW takes an empty state for a new one."""
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state.get(parameter)
            if own:
                yield parameter, own
