"""Who judges which samples: shards of a run, and the processes of a distributed one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tinyalign.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of a data set, each one run of samples.

    Neighbouring samples stay together, because those of one image often lie side by side.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(
                f"there is no shard {self.index} of {self.count}; they are 1/{self.count} to "
                f"{self.count}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/4": the second of four."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise ConfigError(f"a shard is written I/N, such as 2/4; found {text!r}")
        return cls(int(found[1]), int(found[2]))

    def indices(self, n: int) -> range:
        """Which of n samples are this shard's; sizes differ by one at most."""
        return range(n * (self.index - 1) // self.count, n * self.index // self.count)

    def of_rank(self) -> Shard:
        """This process's own share of the shard: all of it unless torch.distributed runs."""
        return Shard((self.index - 1) * ranks() + rank() + 1, self.count * ranks())


def join_ranks() -> None:
    """Join the processes that torchrun or `accelerate launch` started; nothing without them.

    Ranks exchange predictions only, so gloo serves on any device, and waits for the slowest.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _distributed():
        dist.init_process_group("gloo", timeout=timedelta(days=7))


def leave_ranks() -> None:
    """End what `join_ranks` began."""
    if _distributed():
        dist.destroy_process_group()


def local_device(name: str) -> str:
    """`name`, or on GPUs the one that is this process's own: "auto" and "cuda" name no number."""
    number = os.environ.get("LOCAL_RANK")
    if number is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{number}"


def rank() -> int:
    """The number of this process among those of a distributed run, from 0."""
    return dist.get_rank() if _distributed() else 0


def ranks() -> int:
    """How many processes a distributed run has; 1 without one."""
    return dist.get_world_size() if _distributed() else 1


def gather(value: Any) -> list[Any]:
    """The picklable `value` of every rank, in order of rank, on every rank."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, value)
    return found


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
