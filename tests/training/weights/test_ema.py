"""Averaged weights: the formula by hand, where they are used, and that a checkpoint has them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinyalign.training.weights.ema import AveragedWeights, decay_at


def trained(steps: int, decay: float = 0.5) -> tuple[nn.Linear, torch.optim.Optimizer, list]:
    """A layer after some steps of AdamW, and its weights after each of them."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    averages, weights = AveragedWeights(decay), []
    for _ in range(steps):
        take_step(layer, optimizer)
        averages.update(optimizer)
        weights.append(layer.weight.detach().clone())
    return layer, optimizer, weights


def take_step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


def test_the_decay_rises_to_its_value() -> None:
    assert [decay_at(n, 0.999) for n in (1, 2, 90)] == [2 / 11, 3 / 12, 91 / 100]
    assert decay_at(10**6, 0.999) == 0.999


def test_the_average_by_hand() -> None:
    layer, optimizer, (first, second, third, fourth) = trained(4, decay=0.3)
    # d = 3/12, then 4/13, cut to 0.3
    wanted = 0.25 * first + 0.75 * second
    wanted = 0.3 * wanted + 0.7 * third
    wanted = 0.3 * wanted + 0.7 * fourth
    with AveragedWeights(0.3).applied(optimizer):
        torch.testing.assert_close(layer.weight.detach(), wanted)
    assert torch.equal(layer.weight.detach(), fourth)


def test_the_weights_come_back_to_the_bit_even_after_an_error() -> None:
    layer, optimizer, weights = trained(3)

    def interrupted() -> None:
        with AveragedWeights(0.5).applied(optimizer):
            assert not torch.equal(layer.weight, weights[-1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(layer.weight, weights[-1])


def test_the_optimisers_checkpoint_holds_the_averages(tmp_path) -> None:
    layer, optimizer, _ = trained(3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = nn.Linear(3, 2)
    other.load_state_dict(layer.state_dict())
    again = torch.optim.AdamW(other.parameters(), lr=0.1)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    averages = AveragedWeights(0.5)
    for one, its in ((layer, optimizer), (other, again)):
        take_step(one, its)
        averages.update(its)
        averages.swap(its)
    assert torch.equal(other.weight, layer.weight)


def test_what_never_had_a_gradient_is_left_alone() -> None:
    used, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([*used.parameters(), *unused.parameters()], lr=0.1)
    averages, before = AveragedWeights(0.5), unused.weight.detach().clone()
    for _ in range(2):
        take_step(used, optimizer)
        averages.update(optimizer)
    averages.swap(optimizer)
    assert torch.equal(unused.weight, before)
    averages.swap(optimizer)
    take_step(unused, optimizer)  # AdamW still finds it new
    assert not torch.equal(unused.weight, before)
