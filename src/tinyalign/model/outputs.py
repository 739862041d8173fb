"""What `forward` gives: transformers' outputs, with the tokens of images and memories."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


@dataclass
class TinyAlignModelOutput(BaseModelOutputWithPast):
    """With H_V as `image_hidden_states` (images, n, d) and H_R as `memory_hidden_states`."""

    image_hidden_states: Tensor | None = None
    memory_hidden_states: Tensor | None = None


@dataclass
class TinyAlignOutput(CausalLMOutputWithPast):
    """With H_V as `image_hidden_states` (images, n, d) and H_R as `memory_hidden_states`."""

    image_hidden_states: Tensor | None = None
    memory_hidden_states: Tensor | None = None


def with_loss(
    outputs: TinyAlignModelOutput, loss: Tensor | None, logits: Tensor | None = None
) -> TinyAlignOutput:
    """The output of the LLM's body with what its head made of it."""
    return TinyAlignOutput(
        loss=loss,
        logits=logits,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
        image_hidden_states=outputs.image_hidden_states,
        memory_hidden_states=outputs.memory_hidden_states,
    )
