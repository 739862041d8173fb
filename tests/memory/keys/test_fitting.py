from __future__ import annotations

import torch
from torch.nn.functional import normalize

from tinyalign.memory.keys.fitting import principal_directions


class Rows:
    """Features of made-up samples: (n, D) each, most of the variance in a few directions."""

    def __init__(self, count: int, width: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(rank, width, generator=generator)
        means = torch.randn(count, rank, generator=generator) @ basis + 3.0
        noise = torch.randn(count, 4, width, generator=generator)
        self.tensors = means[:, None] + 0.01 * noise

    def batch(self, rows) -> torch.Tensor:
        return self.tensors[list(rows)]


def test_wide_features_keep_their_similarities_in_fewer_numbers() -> None:
    features = Rows(500, 60, 5)
    directions = principal_directions(features.batch, range(500), width=8)
    assert directions.shape == (60, 8)
    torch.testing.assert_close(directions.T @ directions, torch.eye(8), atol=1e-5, rtol=0)
    pooled = features.tensors.mean(dim=1)
    centred = pooled - pooled.mean(dim=0)
    whole, short = normalize(centred, dim=1), normalize(centred @ directions, dim=1)
    torch.testing.assert_close(short @ short.T, whole @ whole.T, atol=5e-3, rtol=0)


def test_narrow_features_are_left_as_they_are() -> None:
    assert principal_directions(Rows(50, 8, 5).batch, range(50), width=8) is None


def test_a_direction_that_never_varies_is_no_reason_to_fail() -> None:
    same = Rows(3, 60, 1)
    assert principal_directions(same.batch, range(3), width=8).isfinite().all()
