"""Processes that `accelerate launch` or `torchrun` started together: who is who, and waiting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from tinyalign.errors import ConfigError

PATIENCE = timedelta(days=7)
"""How long a process waits for the first one, which may be filling caches for hours."""


def processes() -> int:
    """How many processes were launched together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks for all."""
    return processes() == 1 or int(os.environ.get("RANK", "0")) == 0


def zero_on_cpu(device: torch.device) -> bool:
    """Whether DeepSpeed is to share out weights between CPUs.

    It can, but accelerate heeds ACCELERATE_USE_DEEPSPEED only where it is not told of a CPU.
    Raises ConfigError where there are GPUs, which DeepSpeed would take instead.
    """
    wanted = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not wanted or device.type != "cpu":
        return False
    if torch.cuda.is_available():
        raise ConfigError(
            "DeepSpeed was asked for and device cpu too, but it takes the GPUs of this machine; "
            "hide them with CUDA_VISIBLE_DEVICES=, or launch with the ddp or fsdp2 configuration"
        )
    return True


def join(device: torch.device) -> torch.device:
    """Meet the other processes of the launch; returns the device of this one.

    Raises ConfigError where the processes were started together and do not find each other.
    """
    if processes() == 1:
        return device
    if zero_on_cpu(device):
        state = PartialState(backend="gloo")
    else:
        state = PartialState(cpu=device.type == "cpu")
    if state.num_processes != processes():
        raise ConfigError(
            f"{processes()} processes were launched, {state.num_processes} found each other; "
            "launch them with `torchrun` or `accelerate launch`"
        )
    return state.device


def wait_for_all() -> None:
    """Return when every process has come here."""
    if processes() > 1:
        dist.barrier(group=_patient())


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block, then the others do, and find caches and files made.

    Where the first one stops, the others stop too, with a ConfigError that gives its reason.
    """
    if processes() == 1:
        yield
        return
    if not is_first():
        reason = _of_first(None)
        if reason is not None:
            raise ConfigError(f"the first process stopped: {reason}")
        yield
        return
    try:
        yield
    except BaseException as error:
        _of_first(str(error) or type(error).__name__)
        raise
    _of_first(None)


def gather(value: Any) -> list[Any]:
    """The picklable `value` of every process, in their order, on every process."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value, group=_patient())
    return found


def _of_first(value: str | None) -> str | None:
    """What the first process passes here, on every process."""
    said = [value]
    dist.broadcast_object_list(said, src=0, group=_patient(), device=torch.device("cpu"))
    return said[0]


@lru_cache(maxsize=1)
def _patient() -> Any:
    """All processes again, over gloo: it serves on any device and can wait for long."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)
