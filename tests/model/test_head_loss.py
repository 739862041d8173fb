"""Head and cross-entropy in one: the plain loss and gradients, with less in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tinyalign.model.head_loss as module
from tinyalign.model.head_loss import head_loss


def plain(hidden: Tensor, targets: Tensor, head: nn.Linear, softcap: float | None) -> Tensor:
    logits = head(hidden)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return cross_entropy(logits.float(), targets, reduction="sum")


def parts(n: int = 23, bias: bool = False) -> tuple[Tensor, Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(n, 16, requires_grad=True)
    return hidden, torch.randint(0, 50, (n,)), nn.Linear(16, 50, bias=bias)


def gradients(loss: Tensor, hidden: Tensor, head: nn.Linear) -> list[Tensor]:
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(loss / 7, wanted))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_chunks_give_the_plain_loss_and_gradients(bias, softcap, rows, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", rows * 50)
    hidden, targets, head = parts(bias=bias)
    wanted = plain(hidden, targets, head, softcap)
    found = head_loss(hidden, targets, head, "chunked", softcap)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    pairs = zip(gradients(found, hidden, head), gradients(wanted, hidden, head))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, targets, head = parts()
    head.requires_grad_(False)
    head_loss(hidden, targets, head, "chunked").backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_no_supervised_token_is_no_loss() -> None:
    hidden, targets, head = parts(0)
    loss = head_loss(hidden, targets, head, "chunked")
    loss.backward()
    assert loss.item() == 0.0
    assert not head.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_under_autocast_and_of_frozen_weights(dtype) -> None:
    hidden, targets, head = parts()
    with torch.autocast("cpu", dtype):
        wanted = plain(hidden, targets, head, None)
        found = head_loss(hidden, targets, head, "chunked")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(found, hidden, head), gradients(wanted, hidden, head)):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    low = head.to(dtype).requires_grad_(False)
    states = hidden.detach().to(dtype).requires_grad_()
    (gradient,) = gradients(head_loss(states, targets, low, "chunked"), states, low)
    assert gradient.dtype == dtype
    torch.testing.assert_close(
        gradient, gradients(plain(states, targets, low, None), states, low)[0], rtol=5e-2, atol=2e-2
    )


def test_small_gradients_survive_float16() -> None:
    """1 of 20,000 words is likely, the others' probabilities lie below float16's normal numbers."""
    torch.manual_seed(0)
    head = nn.Linear(8, 20_000, bias=False).half().requires_grad_(False)
    hidden = torch.randn(4, 8, dtype=torch.float16, requires_grad=True)
    targets = torch.randint(0, 20_000, (4,))
    (found,) = gradients(head_loss(hidden, targets, head, "chunked"), hidden, head)
    exact = hidden.detach().double().requires_grad_()
    loss = cross_entropy(exact @ head.weight.double().T, targets, reduction="sum")
    (wanted,) = torch.autograd.grad(loss / 7, [exact])
    torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=1e-4)


LIGER = """
import torch
from torch.nn.functional import cross_entropy
from tinyalign.model.head_loss import head_loss
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
cases = [(False, None), (True, None)]
if device == "cuda":
    cases.append((False, 1.5))  # Triton's interpreter cannot do this one
for bias, cap in cases:
    hidden = torch.randn(23, 16, device=device, requires_grad=True)
    targets = torch.randint(0, 50, (23,), device=device)
    head = torch.nn.Linear(16, 50, bias=bias).to(device)
    results = []
    for form in ("liger", "chunked"):
        loss = head_loss(hidden, targets, head, form, cap)
        results.append([loss, *torch.autograd.grad(loss / 7, [hidden, *head.parameters()])])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_liger_gives_the_same_loss_and_gradients(tmp_path: Path) -> None:
    """On a GPU as it is; elsewhere in Triton's interpreter."""
    if find_spec("liger_kernel") is None or find_spec("triton") is None:
        pytest.skip("liger-kernel or triton is not installed")
    script = tmp_path / "liger.py"  # Triton reads the source of what it compiles
    script.write_text(LIGER)
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, **interpreted},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr
