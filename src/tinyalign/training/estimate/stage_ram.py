"""RAM, or GPU memory, of a training step, from shapes alone: weights to activations and logits.

Weights, gradients and AdamW's states are exact. Activations are what autograd keeps for the
backward pass of a decoder layer, in bytes a token, with b bytes a number of the arithmetic,
h hidden size, i intermediate size, a heads and L tokens a sample:

    8 h + 3 b h + 3 b i                two norms in float32; q, k, v; gate, its SiLU, up
    + b (4 h + i)                      where the layer is trained: inputs of its linear maps
    + (4 + b) a L                      eager attention: softmax in float32 and its copy

With gradient checkpointing each layer keeps its input alone (b h), and one layer at a time the
rest. Logits exist at supervised positions only: (b + 8) bytes a number of the vocabulary, for
logits, log-softmax and gradient; with `cross_entropy: chunked` for one chunk of tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyalign.model.head_loss import rows_of_chunk
from tinyalign.training.weights.freeze import Part, parts_of
from tinyalign.vocabulary import CrossEntropy

ADAMW_STATES = 2
STEP_BYTES = 4
"""AdamW counts its steps in a float32 for every tensor."""
# NF4 with double quantisation (Dettmers et al. 2023, section 3; arXiv 2305.14314): 4 bits a weight,
# an 8-bit scale for every 64 weights, and a float32 for every 256 of those scales.
SCALE_BLOCK = 64
SCALES_BLOCK = 256


@dataclass(frozen=True)
class PartMemory:
    """One part of the model: numbers and bytes."""

    name: Part
    trained: int
    frozen: int
    dtype: str
    weights: int
    """Bytes, buffers included."""
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class Batch:
    """What a device computes at once."""

    samples: int
    tokens_a_sample: float
    supervised_a_sample: float


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step on one device."""

    parts: tuple[PartMemory, ...]
    working_copies: int
    """Of trained float32 matrices, in the precision of the arithmetic."""
    activations: int | None
    """None where it is not known how many tokens a device computes at once."""
    logits: int | None

    @property
    def total(self) -> int | None:
        """All of it; None where a part of it is not known."""
        if self.activations is None or self.logits is None:
            return None
        held = sum(part.weights + part.gradients + part.optimizer for part in self.parts)
        return held + self.working_copies + self.activations + self.logits


def step_memory(
    model: Any,
    batch: Batch | None,
    *,
    dtype: torch.dtype,
    eager: bool,
    checkpointing: bool,
    cross_entropy: CrossEntropy = "full",
    four_bit: Collection[Tensor] = (),
) -> StepMemory:
    """Memory of a step of `model`, frozen as the stage has it; its tensors may be on meta.

    batch: None where not known. dtype: of the arithmetic. eager: attention that keeps its scores.
    four_bit: weights that are kept as NF4.
    """
    parts = part_memory(model, four_bit)
    width = dtype.itemsize
    trains_large = any(p.trained for p in parts if p.name in ("language model", "vision tower"))
    copies = 0
    if trains_large and dtype != torch.float32:
        copies = sum(
            p.numel() * width
            for _, module in parts_of(model)
            for p in set(module.parameters())
            if p.requires_grad and p.ndim > 1
        )
    return StepMemory(
        parts=parts,
        working_copies=copies,
        activations=_activations(model, batch, width, eager, checkpointing) if batch else None,
        logits=_logits(model, batch, width, cross_entropy) if batch else None,
    )


def _logits(model: Any, batch: Batch, width: int, cross_entropy: CrossEntropy) -> int:
    vocabulary = model.lm_head.weight.shape[0]
    tokens = batch.samples * batch.supervised_a_sample
    if cross_entropy == "chunked":
        tokens = min(tokens, rows_of_chunk(vocabulary))
    return round(tokens * vocabulary * (width + 8))


def four_bit_bytes(weights: int) -> int:
    """Bytes of a tensor of so many weights in NF4 with double quantisation, scales included."""
    scales = math.ceil(weights / SCALE_BLOCK)
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / SCALES_BLOCK)


def part_memory(model: Any, four_bit: Collection[Tensor] = ()) -> tuple[PartMemory, ...]:
    """Numbers and bytes of each part; a tensor shared by two parts is counted once.

    four_bit: weights that are kept as NF4, whatever their dtype here.
    """
    seen: set[int] = set()
    small = {id(p) for p in four_bit}
    rows: dict[Part, list[PartMemory]] = {}
    for name, module in parts_of(model):
        own = [p for p in module.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        trained = [p for p in own if p.requires_grad]
        size = sum(p.numel() * p.itemsize for p in trained)
        plain = [t for t in (*own, *module.buffers()) if id(t) not in small]
        held = sum(t.numel() * t.itemsize for t in plain)
        held += sum(four_bit_bytes(p.numel()) for p in own if id(p) in small)
        dtypes = ", ".join(sorted({"nf4" if id(p) in small else _dtype(p) for p in own}))
        count = sum(p.numel() for p in trained)
        row = PartMemory(
            name, count, sum(p.numel() for p in own) - count, dtypes, held,
            size, ADAMW_STATES * size + STEP_BYTES * len(trained),
        )  # fmt: skip
        rows.setdefault(name, []).append(row)
    return tuple(_together(each) for each in rows.values())


def _dtype(parameter: Tensor) -> str:
    return str(parameter.dtype).removeprefix("torch.")


def _together(rows: list[PartMemory]) -> PartMemory:
    first = rows[0]
    return PartMemory(
        first.name,
        sum(row.trained for row in rows),
        sum(row.frozen for row in rows),
        first.dtype,
        sum(row.weights for row in rows),
        sum(row.gradients for row in rows),
        sum(row.optimizer for row in rows),
    )


def _activations(model: Any, batch: Batch, width: int, eager: bool, checkpointing: bool) -> int:
    text = model.config.text_config
    trained = any(p.requires_grad for p in model.model.language_model.parameters())
    layers, hidden = text.num_hidden_layers, text.hidden_size
    tokens = batch.samples * batch.tokens_a_sample
    layer = (8 + 3 * width) * hidden + 3 * width * text.intermediate_size
    if trained:
        layer += width * (4 * hidden + text.intermediate_size)
    if eager:
        layer += (4 + width) * text.num_attention_heads * batch.tokens_a_sample
    if checkpointing:
        return round(tokens * (layers * width * hidden + layer))
    return round(tokens * layers * layer)
