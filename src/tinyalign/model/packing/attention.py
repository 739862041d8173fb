"""Letting an LLM read packed rows: which way its samples are kept apart, found out by trying.

Models differ in what they do with positions and masks, so nothing is taken on trust: a row of
three made samples runs through the LLM, and each must come out as it does alone, to the bit
whatever its neighbours are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tinyalign.data.collator import segment_table
from tinyalign.log import logger
from tinyalign.model.packing.segments import PREFIX, SUPPORTED, register

Isolation = Literal["segments", "positions"]

PROBE = (5, 3, 4)  # tokens of the made samples
# Largest difference to a sample alone, in root mean squares: rounding, never a missing mask.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 0.1


def enable_packing(model: Any) -> Isolation | None:
    """Make the LLM of a TinyAlign model read packed rows; None where it cannot.

    "segments": attention over segments (`model.packing.segments`), for eager and SDPA attention.
    "positions": transformers' own masks, from positions that start again at 0; flash attention
    needs none. None: its samples would see each other either way, so batches must be padded.
    `disable_packing` gives the LLM its own attention back.
    """
    llm = model.model.language_model
    own = llm.config._attn_implementation
    if own in SUPPORTED:
        register()
        llm.config._attn_implementation = PREFIX + own
        if keeps_apart(llm):
            return "segments"
        llm.config._attn_implementation = own
    if keeps_apart(llm):
        return "positions"
    logger.warning(
        "packing: %s lets packed samples see each other, so batches are padded instead",
        type(llm).__name__,
    )
    return None


def disable_packing(model: Any) -> None:
    """Undo `enable_packing`."""
    config = model.model.language_model.config
    config._attn_implementation = (config._attn_implementation or "").removeprefix(PREFIX) or None


def segment_mask(llm: Any, segments: Tensor) -> Tensor | None:
    """What a packed row passes as attention mask: (S, 1, 1, L), or None for "positions"."""
    over_segments = (llm.config._attn_implementation or "").startswith(PREFIX)
    return segments[:, None, None, :] if over_segments else None


@torch.no_grad()
def keeps_apart(llm: Any) -> bool:
    """Whether samples in one row come out as they do alone, as the LLM is set now."""
    was_training = llm.training
    llm.eval()
    try:
        return _keeps_apart(llm)
    except Exception as error:  # an unknown model's own code may fail in any way
        logger.debug("packing: %s: %s", type(llm).__name__, error)
        return False
    finally:
        llm.train(was_training)


def _keeps_apart(llm: Any) -> bool:
    table = llm.get_input_embeddings().weight
    ids = torch.arange(3, 3 + sum(PROBE), device=table.device) % len(table)
    parts = list(ids.split(PROBE))
    packed = _packed(llm, parts)
    for i, part in enumerate(parts):
        alone = llm(inputs_embeds=_embedded(llm, part), use_cache=False).last_hidden_state[0]
        scale = alone.float().square().mean().sqrt()
        if (packed[i] - alone).abs().max() > _tolerance(alone.dtype) * scale:
            return False
        others = [p if j == i else p.flip(0) + 1 for j, p in enumerate(parts)]
        if not torch.equal(_packed(llm, others)[i], packed[i]):
            return False
    return True


def _packed(llm: Any, parts: list[Tensor]) -> list[Tensor]:
    ids = torch.cat(parts)
    segments = segment_table([len(part) for part in parts]).to(ids.device)
    positions = torch.cat([torch.arange(len(part), device=ids.device) for part in parts])
    output = llm(
        inputs_embeds=_embedded(llm, ids),
        attention_mask=segment_mask(llm, segments),
        position_ids=positions[None],
        use_cache=False,
    )
    return list(output.last_hidden_state[0].split([len(part) for part in parts]))


def _embedded(llm: Any, ids: Tensor) -> Tensor:
    return llm.get_input_embeddings()(ids[None])


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE)
