"""Memory drop-out: who sees no memory hangs on seed, step and sample, and on nothing else."""

from __future__ import annotations

import torch

from tinyalign.training.batches.memory_dropout import kept_memories


def test_a_sample_is_treated_alike_in_any_batch() -> None:
    together = kept_memories(range(40), step=3, probability=0.5, seed=1)
    torch.manual_seed(9)
    apart = [kept_memories([i], step=3, probability=0.5, seed=1).item() for i in range(40)]
    assert together.tolist() == apart


def test_steps_and_seeds_draw_anew() -> None:
    draws = [kept_memories(range(64), s, 0.5, seed).tolist() for s in (0, 1) for seed in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_the_share_is_the_probability() -> None:
    kept = kept_memories(range(4000), step=0, probability=0.2, seed=0).float().mean().item()
    assert 0.77 < kept < 0.83
    assert kept_memories(range(9), 0, 0.0, 0).all()
