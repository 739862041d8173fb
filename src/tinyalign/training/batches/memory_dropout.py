"""Memory drop-out: which samples see no memory in a step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def kept_memories(indices: Iterable[int], step: int, probability: float, seed: int) -> Tensor:
    """Whether each sample keeps its memories (N,) bool; probability: the chance that it does not.

    The draw hangs on seed, step and sample alone: on no generator's state, so it is the same
    however a step is split, and after a resumption.
    """
    draws = [np.random.default_rng([seed, step, int(index)]).random() for index in indices]
    return torch.tensor(draws) >= probability
