"""Attention over a packed row: several samples lie one behind the other, and none sees another.

A packed row has no padding, so everything but attention runs on real tokens alone. Attention
gathers the row into (samples, longest), is causal there, and scatters its result back. What fills
a shorter sample up stands behind it, where causality hides it, so no mask is needed.

Which token belongs to which sample reaches every layer of any LLM of transformers in the place
of the 4-D attention mask, which models pass on untouched: `segments` as int64 (S, 1, 1, L), the
place in the row of each sample's tokens, -1 behind its end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

PREFIX = "segments_"
SUPPORTED = ("eager", "sdpa")
"""The kinds of attention that can run over segments, under the name `segments_KIND`."""


torch.library.define("tinyalign::rows", "(Tensor x, Tensor index) -> Tensor")


@torch.library.impl("tinyalign::rows", "CPU")
def _copied_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


@torch.library.register_fake("tinyalign::rows")
def _like_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], *x.shape[1:])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x by number, whole ones copied. x must be contiguous.

    Compiled for a CPU this is an operation of its own: fused into its neighbours, it would read
    bfloat16 one number at a time, which made a compiled layer a sixth slower.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return torch.ops.tinyalign.rows(x, index)
    return x.index_select(0, index)


class _ToCells(torch.autograd.Function):
    """Tokens (T, h, D) to cells (S*L, h, D); an empty cell gets the first token, as a stand-in.

    Each token has one cell, so its gradient is gathered from there, which is much faster than
    adding up. What attention makes of an empty cell is thrown away: its gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, of_cell: Tensor, of_token: Tensor) -> Tensor:
        ctx.save_for_backward(of_token)
        return _rows(tokens, of_cell.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (of_token,) = ctx.saved_tensors
        return _rows(gradients[0].contiguous(), of_token), None, None


class _ToTokens(torch.autograd.Function):
    """Cells (S*L, h, D) back to tokens (T, h, D); empty cells are left out."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, of_cell: Tensor, of_token: Tensor) -> Tensor:
        ctx.save_for_backward(of_cell)
        return _rows(cells, of_token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (of_cell,) = ctx.saved_tensors
        n_tokens = gradients[0].shape[0]
        gradient = nn.functional.pad(gradients[0], (0, 0, 0, 0, 0, 1))  # zeros, for empty cells
        return _rows(gradient, torch.where(of_cell < 0, n_tokens, of_cell)), None, None


def _cells_of_tokens(of_cell: Tensor, n_tokens: int) -> Tensor:
    """Cell of each token (T,), from the token of each cell (S*L,), -1 where it is empty."""
    numbers = torch.arange(of_cell.numel(), device=of_cell.device)
    tokens = torch.where(of_cell < 0, n_tokens, of_cell)  # empty cells write behind the last
    return numbers.new_zeros(n_tokens + 1).scatter_(0, tokens, numbers)[:n_tokens]


def _attend(
    inner: Any, states: tuple[Tensor, Tensor, Tensor], table: Tensor, options: dict[str, Any]
) -> Tensor:
    """Causal attention in each segment. states: (1, heads, T, D) each; returns (1, T, heads, D)."""
    n_segments, longest = table.shape[0], table.shape[-1]
    of_cell = table.flatten()
    of_token = _cells_of_tokens(of_cell, states[0].shape[2])

    def in_cells(x: Tensor) -> Tensor:
        # (1, h, T, D) -> (T, h, D) -> (S*L, h, D) -> (S, h, L, D)
        cells = _ToCells.apply(x[0].transpose(0, 1).contiguous(), of_cell, of_token)
        return cells.view(n_segments, longest, *cells.shape[1:]).transpose(1, 2)

    if len({x.shape[-1] for x in states}) == 1:  # one copy a cell instead of three
        split = in_cells(torch.cat(states, dim=1)).split([x.shape[1] for x in states], dim=1)
    else:
        split = tuple(in_cells(x) for x in states)
    output = inner(*split, **options)  # (S, H, L, D)
    cells = output.transpose(1, 2).reshape(n_segments * longest, *output.shape[1::2])
    return _ToTokens.apply(cells, of_cell, of_token)[None]


def _visible(longest: int, window: int | None, device: torch.device) -> Tensor:
    """Where a query may look, (L, L) bool: back to the first token, or so far as a window goes."""
    allowed = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    return allowed if window is None else allowed.triu(1 - window)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """PyTorch's fused kernels: (S, H, L, D), (S, h, L, D) twice -> (S, H, L, D)."""
    if softcap is not None:
        raise NotImplementedError("sdpa has no soft cap")
    longest = query.shape[2]
    mask = None
    if window is not None and window < longest:
        mask = _visible(longest, window, query.device)
    return nn.functional.scaled_dot_product_attention(
        query, key, value,
        attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Two matrix products: (S, H, L, D), (S, h, L, D) twice -> (S, H, L, D); causal.

    One key head serves H/h query heads, whose queries stand below each other as rows.
    """
    s, heads, longest, size = query.shape
    shared = key.shape[1]
    rows = query.reshape(s * shared, -1, size)  # (S, H, L, D) -> (S*h, H/h * L, D)
    keys = key.reshape(s * shared, longest, size).transpose(1, 2)
    hidden = ~_visible(longest, window, query.device)
    bias = query.new_zeros(longest, longest)
    bias = bias.masked_fill(hidden, torch.finfo(query.dtype).min).repeat(heads // shared, 1)
    if softcap is None:
        scores = torch.baddbmm(bias, rows, keys, alpha=scaling)
    else:
        scores = torch.tanh(rows @ keys * (scaling / softcap)) * softcap + bias
    values = value.reshape(s * shared, longest, -1)
    return (_weights(scores, dropout) @ values).view(s, heads, longest, -1)


def _weights(scores: Tensor, dropout: float) -> Tensor:
    """Softmax over the last dimension, in float32."""
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return nn.functional.dropout(weights, dropout) if dropout else weights


def _usual_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Eager attention over padded rows, whose mask (B, 1, L, K) is added to the scores."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    output = _weights(scores, dropout) @ value.repeat_interleave(groups, dim=1)
    return output.transpose(1, 2), None


def _attention(inner: Any, usual: Any) -> Any:
    """The function transformers calls in each layer: over segments, or `usual` for padded rows."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        options = {"scaling": scaling, "dropout": dropout, "softcap": softcap}
        if attention_mask is None or attention_mask.dtype != torch.long:
            return usual(module, query, key, value, attention_mask, **options, **kwargs)
        if any(kwargs.get(name) is not None for name in ("s_aux", "position_bias")):
            raise NotImplementedError("attention over segments has neither sinks nor biases")
        options["window"] = sliding_window
        return _attend(inner, (query, key, value), attention_mask, options), None

    return forward


def register() -> None:
    """Make transformers know `segments_eager` and `segments_sdpa`."""
    for name, inner, usual, mask in (
        ("eager", _eager, _usual_eager, eager_mask),
        ("sdpa", _sdpa, sdpa_attention_forward, sdpa_mask),
    ):
        AttentionInterface.register(PREFIX + name, _attention(inner, usual))
        AttentionMaskInterface.register(PREFIX + name, mask)
