"""The largest micro-batch of the whole plan runs first, so memory trouble shows at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.training.batches.micro_batches import Items, MicroBatches
from tinyalign.training.recipe.stage import StageArgs

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class Rehearses(Protocol):
    """What a rehearsal needs of a trainer."""

    args: TrainingArguments
    stage: StageArgs
    model_wrapped: Any
    optimizer: Any
    data_collator: Any
    is_deepspeed_enabled: bool

    @property
    def items(self) -> Items: ...

    def micro_batches(self) -> MicroBatches: ...

    def rehearse(self, batch: dict[str, Any]) -> None: ...


class Rehearsal(TrainerCallback):
    """Before the first step, forward and backward of the largest micro-batch; then forgets it.

    Gradients, buffers and the state of every generator are put back, so the run is the same to
    the bit. On a GPU, room is held for the optimiser's states meanwhile.
    """

    def __init__(self, trainer: Rehearses) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Rehearse; ConfigError, with what to lower, if memory does not suffice."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            return  # it keeps gradients of its own, which could not be taken away again
        plan = trainer.micro_batches()
        places, tokens = plan.largest(max(1, state.num_train_epochs))
        try:
            with untouched(trainer.model_wrapped), room_for_optimizer(trainer):
                batch = trainer.data_collator([trainer.items[place] for place in places])
                trainer.rehearse(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"the largest micro-batch, {tokens} tokens of {len(places)} samples, does not fit "
                f"into the memory of {args.device}: lower micro_tokens (now "
                f"{trainer.stage.micro_tokens}) or micro_batch_size "
                f"(now {trainer.stage.micro_batch_size}), or set gradient_checkpointing"
            ) from error
        logger.info(
            "rehearsed the largest micro-batch: %d tokens of %d samples", tokens, len(places)
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or elsewhere."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Take gradients away and put buffers and random generators back afterwards."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def room_for_optimizer(trainer: Rehearses) -> Iterator[None]:
    """Hold the memory of AdamW's two moments, which the first step will ask for, on a GPU."""
    optimizer = trainer.optimizer
    held = []
    if trainer.args.device.type == "cuda" and optimizer is not None and not optimizer.state:
        for group in optimizer.param_groups:
            held += [torch.empty_like(p) for p in group["params"] for _ in range(2)]
    yield
    held.clear()
