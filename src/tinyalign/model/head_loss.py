"""The LLM's head and the cross-entropy in one, without all logits in memory at once.

Logits are (tokens, vocabulary) and their gradient as large again: at 49,152 words 0.6 MB a token.
Here they live for a few hundred tokens at a time, and each part's gradients are taken at once,
so that the head is computed as often as without. Loss and gradients are those of the plain way
but for the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinyalign.vocabulary import CrossEntropy

CHUNK = 1 << 24  # logits held at once


def head_loss(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Linear,
    form: CrossEntropy,
    softcap: float | None = None,
) -> Tensor:
    """Cross-entropy (nats) summed over tokens: hidden (N, d), targets (N,) int64 -> ().

    form: "chunked", or "liger" for the kernel of the package liger-kernel (GPU).
    softcap: Gemma 2's bound on logits.
    """
    if form == "liger":
        return _liger(hidden, targets, head, softcap)
    loss: Any = _ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, targets, softcap)
    return loss


def rows_of_chunk(vocabulary: int) -> int:
    """Tokens whose logits are held at once by "chunked"."""
    return max(1, CHUNK // vocabulary)


def _liger(hidden: Tensor, targets: Tensor, head: nn.Linear, softcap: float | None) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(
        reduction="sum", softcap=softcap, accum_dtype=torch.float32
    )
    return loss(head.weight, hidden, targets, head.bias)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a linear head; the gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        scale = 1024.0 if dtype == torch.float16 else 1.0  # of what float16 would lose
        wanted = ctx.needs_input_grad
        d_hidden = torch.zeros(hidden.shape, device=hidden.device) if wanted[0] else None
        d_weight = torch.zeros(weight.shape, device=weight.device) if wanted[1] else None
        d_bias = torch.zeros(bias.shape, device=bias.device) if wanted[2] else None  # type: ignore[union-attr]
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(device, enabled=False):
            matrix, rows = weight.to(dtype), rows_of_chunk(len(weight))
            offset = None if bias is None else bias.to(dtype)
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows].to(dtype)  # (n, d)
                logits = nn.functional.linear(part, matrix, offset)  # (n, V)
                loss, gradient = _loss_and_gradient(logits, targets[start : start + rows], softcap)
                total += loss
                d_logits = gradient.mul_(scale).to(dtype)
                if d_hidden is not None:
                    d_hidden[start : start + rows] = (d_logits @ matrix).float() / scale
                if d_weight is not None:
                    d_weight += (d_logits.T @ part).float() / scale
                if d_bias is not None:
                    d_bias += d_logits.float().sum(dim=0) / scale
        ctx.gradients = (d_hidden, d_weight, d_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients times what comes from above, each in the dtype of its input."""
        made = [
            None if gradient is None else (gradient.mul_(upstream[0])).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes)
        ]
        ctx.gradients = ()
        return (*made, None, None)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Summed loss () and its gradient (n, V) float32 with respect to logits (n, V)."""
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    values = logits.float()
    steepness = None if softcap is None else 1 - (values / softcap) ** 2
    norm = torch.logsumexp(values, dim=1, keepdim=True)  # (n, 1)
    chosen = targets[:, None]
    loss = (norm - values.gather(1, chosen)).sum()
    gradient = values.sub_(norm).exp_()
    gradient.scatter_add_(1, chosen, torch.full_like(norm, -1.0))
    return loss, gradient if steepness is None else gradient.mul_(steepness)
