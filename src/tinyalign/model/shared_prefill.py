"""One prompt is read once, however many beams or samples go on from it.

transformers repeats every prompt for each beam or sample before the model reads it. A prompt with
an image and memories is long and its answer is short, so nearly all of that is the same work done
again. Here the prompt is read once and its cache is repeated instead; what follows is
transformers' own. The answers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin


class SharedPrefillMixin(GenerationMixin):
    """`generate` with the prompt read once; where it cannot be, as in transformers."""

    _prompts: tuple[int, Any] | None = None

    @contextmanager
    def _sharing_prefill(self, rows: int | None, encoder_outputs: Any) -> Iterator[None]:
        """rows: prompts in the batch before they are repeated; encoder_outputs: of their images,
        which transformers repeats in place."""
        kept = {name: type(one)(**one) for name, one in (encoder_outputs or {}).items()}
        before, self._prompts = self._prompts, None if rows is None else (rows, kept)
        try:
            yield
        finally:
            self._prompts = before

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        plain: Any = super()
        cache = model_kwargs.get("past_key_values")
        copies = 1 if self._prompts is None else len(input_ids) // self._prompts[0]
        shareable = (
            self._prompts is not None
            and copies > 1
            and is_first_iteration
            and type(cache) is DynamicCache
            and not cache.get_seq_length()
            and model_kwargs.get("inputs_embeds") is None
            and set(model_kwargs.get("mm_encoder_outputs") or ()) == set(self._prompts[1])
            and generation_config.prefill_chunk_size is None
            and not generation_config.output_attentions
            and not generation_config.output_hidden_states
        )
        if not shareable:
            return plain._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        once = {name: _every(value, copies) for name, value in model_kwargs.items()}
        if self._prompts is not None and self._prompts[1]:
            once["mm_encoder_outputs"] = self._prompts[1]
        outputs = plain._prefill(input_ids[::copies], generation_config, once, is_first_iteration)
        outputs.past_key_values.batch_repeat_interleave(copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        return outputs


def _every(value: Any, copies: int) -> Any:
    """Each prompt's own row of a tensor that was repeated; anything else as it is."""
    return value[::copies] if isinstance(value, torch.Tensor) and value.ndim else value
