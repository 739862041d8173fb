"""flash-attn's two functions for training with their arithmetic written out, for any processor.

Same arguments and results as the package's (v2.1 and later: causal masks are aligned at the end),
none of its speed. With it, what a model does around flash attention can be tested without a GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as flash


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **_: Any,
) -> Tensor:
    """(B, L, H, D) each, where k and v may have fewer heads -> (B, L, H, D)"""
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    mask = mask.tril(k.shape[2] - q.shape[2]) if causal else mask
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=softmax_scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **named: Any,
) -> Tensor:
    """Sequences one after the other, (T, H, D), each by itself; cu_seqlens: where they begin."""
    parts = (
        one.split(ends.diff().tolist())
        for one, ends in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))
    )
    alone = (flash_attn_func(*(one[None] for one in part), **named)[0] for part in zip(*parts))
    return torch.cat(list(alone))


def install(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let transformers find these functions where it looks for the package flash-attn.

    Returns how often each is called.
    """
    calls: Counter[str] = Counter()

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(function)
        def called(*args: Any, **named: Any) -> Tensor:
            calls[function.__name__] += 1
            return function(*args, **named)

        return called

    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    vars(package).update(
        flash_attn_func=counted(flash_attn_func),
        flash_attn_varlen_func=counted(flash_attn_varlen_func),
        flash_attn_with_kvcache=None,
    )
    vars(padding).update(pad_input=flash._pad_input, unpad_input=flash._unpad_input)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash, "is_flash_attn_2_available", lambda *_, **__: True)
    matrix = flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(matrix, "general_availability_check", lambda *_, **__: True)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    return calls
