"""TinyAlign as a transformers model: [H_V | H_R | H_I] -> LLM -> loss on supervised tokens.

`forward` never retrieves: it takes `memory_values` as a tensor. `generate` fetches them once from
an attached `retriever` (see `model.generation`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from tinyalign.errors import ModelError
from tinyalign.model.backbones.vision import tower_features
from tinyalign.model.configuration import TinyAlignConfig
from tinyalign.model.connectors.image import build_connector
from tinyalign.model.connectors.memory import MemoryConnector
from tinyalign.model.copying import CopyGate, CopyTexts, mixed_supervised, take_copy_texts
from tinyalign.model.generation import MemoryGenerationMixin
from tinyalign.model.head_loss import head_loss
from tinyalign.model.outputs import TinyAlignModelOutput, TinyAlignOutput, with_loss
from tinyalign.model.packing.attention import segment_mask
from tinyalign.model.placement import PlacementMixin
from tinyalign.model.remote import PackageIsTheCode
from tinyalign.model.unused_parameters import touch_unused
from tinyalign.vocabulary import CrossEntropy


class TinyAlignPreTrainedModel(PackageIsTheCode, PreTrainedModel):
    """What both classes share: the config, and how connectors draw their weights."""

    config: TinyAlignConfig
    config_class = TinyAlignConfig
    base_model_prefix = "model"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    # Connectors are small and trained: full precision whatever dtype the rest is loaded in.
    _keep_in_fp32_modules_strict: Any = ["multi_modal_projector", "memory_connector"]  # noqa: RUF012
    _skip_keys_device_placement: Any = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        if module is getattr(self, "lm_head", None):
            init.normal_(self.lm_head.weight, mean=0.0, std=self.config.token_rms)
            if self.lm_head.bias is not None:
                init.zeros_(self.lm_head.bias)
            return
        for name in ("multi_modal_projector", "memory_connector"):
            connector: Any = getattr(self, name, None)
            if connector is not None and any(module is part for part in connector.modules()):
                # A connector draws all its missing weights at once: their scales belong together.
                connector.reset_parameters()
                for part in connector.modules():
                    part._is_hf_initialized = True


class TinyAlignModel(PlacementMixin, TinyAlignPreTrainedModel):
    """Vision tower, image connector, memory connector and LLM without its head."""

    def __init__(self, config: TinyAlignConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_connector(config)  # named as in LLaVA
        self.memory_connector = MemoryConnector(config) if config.memory_k else None
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_vision_features(self, pixel_values: Tensor) -> Tensor:
        """X_V (images, n, D): the frozen tower's tokens before the connector; can be cached."""
        return tower_features(
            self.vision_tower,
            pixel_values,
            self.config.vision_feature_layer,
            self.config.vision_feature_select,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """H_V as `pooler_output`, a list with one (n, d) a image; X_V as `last_hidden_state`.

        Pass pixel_values (images, 3, H, W), or vision_features (images, n, D) from a cache.
        """
        if vision_features is None:
            if pixel_values is None:
                raise ModelError("Pass pixel_values or vision_features.")
            vision_features = self.get_vision_features(pixel_values)
        elif pixel_values is not None:
            raise ModelError("Pass either pixel_values or vision_features, not both.")
        weight = self.multi_modal_projector.output.weight
        tokens = self.multi_modal_projector(vision_features.to(weight.device, weight.dtype))
        images: Any = list(tokens)  # transformers 5 wants one tensor an image
        return BaseModelOutputWithPooling(last_hidden_state=vision_features, pooler_output=images)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_features: Tensor | None = None,
        memory_values: Tensor | None = None,
        memory_mask: Tensor | None = None,
        memory_scores: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        segments: Tensor | None = None,
        **kwargs: Any,
    ) -> TinyAlignModelOutput:
        """Hidden states (B, L, d). See `TinyAlignForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        images = self._image_tokens(input_ids, pixel_values, vision_features, mm_encoder_outputs)
        memories = self._memory_features(
            input_ids, memory_values, memory_mask, memory_scores, segments
        )
        inputs_embeds = self._placed(input_ids, inputs_embeds, images, memories, segments)
        if self.training:
            inputs_embeds = touch_unused(self, inputs_embeds, images, memories)
        if segments is not None:
            attention_mask = segment_mask(self.language_model, segments)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return TinyAlignModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=images,
            memory_hidden_states=memories,
        )


class TinyAlignForConditionalGeneration(TinyAlignPreTrainedModel, MemoryGenerationMixin):
    """TinyAlign with the LLM's head: loss, logits and generation."""

    def __init__(self, config: TinyAlignConfig) -> None:
        super().__init__(config)
        self.model = TinyAlignModel(config)
        text: Any = config.text_config
        self.lm_head = nn.Linear(config.text_width, text.vocab_size, bias=config.lm_head_bias)
        self._tied_weights_keys = self._find_tied_weights()
        self.post_init()

    def _find_tied_weights(self) -> dict[str, str]:
        # The embedding has another name in other families (wte, embed_in, ...).
        table = self.get_input_embeddings()
        for name, module in self.named_modules():
            if module is table:
                return {"lm_head.weight": f"{name}.weight"}
        raise ModelError("The language model's token embeddings were not found among its modules.")

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_vision_features(self, pixel_values: Tensor) -> Tensor:
        """X_V (images, n, D), the frozen tower's tokens before the connector."""
        return self.model.get_vision_features(pixel_values)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """See `TinyAlignModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, vision_features, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_features: Tensor | None = None,
        memory_values: Tensor | None = None,
        memory_mask: Tensor | None = None,
        memory_scores: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        segments: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        supervised_only: bool = False,
        cross_entropy: CrossEntropy = "full",
        **kwargs: Any,
    ) -> TinyAlignOutput:
        """Logits, and with `labels` the loss.

        input_ids, attention_mask, labels (B, L); labels are -100 where nothing is learned.
        Images: pixel_values (images, 3, H, W), or vision_features (images, n, D) from a cache,
        or mm_encoder_outputs {"image": get_image_features(...)}.
        Memories: memory_values (B, k, 32, 96), memory_mask (B, k) bool, memory_scores (B, k).
        A row whose mask is all False may do without placeholders: text alone has none.
        Without memory placeholders and memory_values the model runs without memory.
        supervised_only with labels: the head runs only at positions whose next token is
        supervised. The loss is the same; logits are then (1, supervised, vocabulary).
        cross_entropy other than "full" with supervised_only: head and loss in one, which saves
        the memory of the logits; there are none in the output then (`model.head_loss`).
        segments (S, L): the batch is one packed row (1, T) of S samples; of each the places of
        its tokens, -1 behind its end (`data.collator.PackedCollator`; the LLM must have been
        through `model.packing.attention.enable_packing`). Memories are then (S, k, 32, 96) and
        position_ids start at 0 in each sample, whose first label is -100. attention_mask is not
        used.
        copy_ids (B, n, T), copy_weights (B, n), copy_nearest (B,), with labels: the loss is that of
        the LLM mixed with what these texts say next, and logits (1, supervised, vocabulary) are
        log p of the mixture (`model.copying`; the gate is the config's `memory_copy`).
        num_items_in_batch, when given, divides the summed loss instead of the count here.
        """
        loss_arguments = _taken(kwargs, "num_items_in_batch")
        copied = take_copy_texts(kwargs)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_features=vision_features,
            memory_values=memory_values,
            memory_mask=memory_mask,
            memory_scores=memory_scores,
            mm_encoder_outputs=mm_encoder_outputs,
            segments=segments,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if copied is not None and labels is not None:
            return self._copied(outputs, labels, copied, **loss_arguments)
        if labels is None or not supervised_only:
            logits = self._head(_kept(hidden, logits_to_keep))
            loss = None if labels is None else self._loss(logits, labels, **loss_arguments)
            return with_loss(outputs, loss, logits)
        hidden, loss_arguments["shift_labels"] = _supervised(hidden, labels)
        if cross_entropy != "full":
            return with_loss(outputs, self._head_loss(hidden, cross_entropy, **loss_arguments))
        logits = self._head(hidden)
        return with_loss(outputs, self._loss(logits, labels, **loss_arguments), logits)

    def _copied(
        self, outputs: TinyAlignModelOutput, labels: Tensor, texts: CopyTexts, **arguments: Any
    ) -> TinyAlignOutput:
        """Loss and log p of the LLM mixed with what `texts` say next."""
        gate = CopyGate.of(self.config) if self.copier is None else self.copier.gate
        if gate is None:
            raise ModelError(
                "Texts to copy from were passed, but the model has no copy gate: set "
                "config.memory_copy, or model.copier."
            )
        states: Any = outputs.last_hidden_state
        hidden, following = _supervised(states, labels)
        logits = self._head(hidden)[0]
        mixture = mixed_supervised(logits, labels.to(logits.device), texts.to(logits.device), gate)
        loss = self._loss(mixture[None], labels, shift_labels=following, **arguments)
        return with_loss(outputs, loss, mixture[None])

    def _loss(self, logits: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """transformers' loss for a causal LM."""
        return self.loss_function(
            logits=logits, labels=labels, vocab_size=logits.shape[-1], **arguments
        )

    @property
    def _softcap(self) -> float | None:
        return getattr(self.config.text_config, "final_logit_softcapping", None)  # Gemma 2

    def _head(self, hidden: Tensor) -> Tensor:
        logits, cap = self.lm_head(hidden), self._softcap
        return torch.tanh(logits / cap) * cap if cap else logits

    def _head_loss(
        self,
        hidden: Tensor,
        form: CrossEntropy,
        shift_labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """hidden (1, N, d) and the N tokens that follow -> the loss, as `loss_function` has it."""
        total = head_loss(hidden[0], shift_labels[0], self.lm_head, form, self._softcap)
        count = shift_labels.numel() if num_items_in_batch is None else num_items_in_batch
        return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def _taken(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of some arguments that were given, taken out of them."""
    return {name: arguments.pop(name) for name in names if name in arguments}


def _kept(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """hidden (B, L, d) at the places that logits are wanted of: the last ones, or those named."""
    if isinstance(logits_to_keep, Tensor):
        return hidden[:, logits_to_keep]
    return hidden[:, -logits_to_keep:] if logits_to_keep else hidden


def _supervised(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states whose next token is supervised: (1, N, d), and those tokens (1, N)."""
    following = labels[:, 1:].to(hidden.device)
    wanted = following != -100  # (B, L - 1)
    return hidden[:, :-1][wanted][None], following[wanted][None]
