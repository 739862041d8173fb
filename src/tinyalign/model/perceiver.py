"""The Perceiver that turns an (image, text) pair into a memory value E_R of 32 x 96 numbers.

It knows nothing of the LLM (table 4 of arXiv:2505.12884). Its training target
decides what can be read from a latent, so both read-outs are single linear maps: latent *j*
predicts text token *j*, and the last latents together predict the pooled image features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PerceiverConfig, PerceiverModel, PreTrainedModel
from transformers import initialization as init

from tinyalign.errors import ModelError
from tinyalign.lazy import exports
from tinyalign.model.perceiver_config import PerceiverNetworkConfig


def _trunk_config(config: PerceiverNetworkConfig) -> PerceiverConfig:
    return PerceiverConfig(
        num_latents=config.num_latents,
        d_latents=config.d_latents,
        d_model=config.d_model,
        num_blocks=config.num_blocks,
        num_self_attends_per_block=config.num_self_attends_per_block,
        num_self_attention_heads=config.num_self_attention_heads,
        num_cross_attention_heads=config.num_cross_attention_heads,
        qk_channels=config.qk_channels,
        v_channels=config.v_channels,
        attention_probs_dropout_prob=config.dropout,
        initializer_range=config.initializer_range,
    )


class PerceiverNetwork(PreTrainedModel):
    """(image, text) -> latents (B, num_latents, d_latents), each latent of unit RMS.

    The unit RMS comes from a closing LayerNorm without weights: it keeps fp16 banks safe and gives
    a connector inputs of known size whatever the training did.
    """

    config: PerceiverNetworkConfig
    config_class = PerceiverNetworkConfig
    base_model_prefix = "perceiver"
    main_input_name = "text_ids"
    input_modalities: Any = ("image", "text")

    def __init__(self, config: PerceiverNetworkConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.text_position = nn.Embedding(config.max_text_tokens, config.d_model)
        self.image_position = nn.Embedding(self._n_image_positions(config), config.d_model)
        self.modality = nn.Embedding(2, config.d_model)  # 0 text, 1 image
        if config.input_mode == "features":
            self.image_norm: nn.Module = nn.LayerNorm(config.feature_dim)
            self.image_projection = nn.Linear(config.feature_dim, config.d_model)
        else:
            self.image_norm = nn.Identity()
            self.image_projection = nn.Linear(3 * config.patch_size**2, config.d_model)
        self.trunk = PerceiverModel(_trunk_config(config))
        self.latent_norm = nn.LayerNorm(config.d_latents, elementwise_affine=False)
        self.text_head = nn.Linear(config.d_latents, config.vocab_size)
        self.image_head = nn.Linear(config.n_image_latents * config.d_latents, config.feature_dim)
        self.post_init()

    @staticmethod
    def _n_image_positions(config: PerceiverNetworkConfig) -> int:
        if config.input_mode == "features":
            return config.max_image_tokens
        return (config.image_size // config.patch_size) ** 2

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.image_projection:
            # Projected tokens start as large as the position and modality they are added to.
            std = self.config.initializer_range / math.sqrt(module.in_features)
            init.normal_(module.weight, mean=0.0, std=std)

    def forward(
        self,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """Latents (B, num_latents, d_latents) of a batch of pairs.

        text_ids (B, L) long, ids of the Perceiver's own tokenizer; text_mask (B, L), 1 = real.
        image_features (B, n, feature_dim) in "features" mode, pixel_values (B, 3, H, W) in
        "pixels" mode. Either side may be left out. Padding never changes the latents.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        if text_ids is not None and text_ids.shape[1] > 0:
            mask = torch.ones_like(text_ids) if text_mask is None else text_mask
            parts.append((self._embed_text(text_ids), mask))
        image = self._embed_image(image_features, pixel_values)
        if image is not None:
            parts.append((image, image.new_ones(image.shape[:2], dtype=torch.long)))
        if not parts:
            raise ModelError("The Perceiver was given neither text nor an image; pass one of them.")
        tokens = torch.cat([tokens for tokens, _ in parts], dim=1)  # (B, L + n, d_model)
        mask = torch.cat([mask.to(torch.long) for _, mask in parts], dim=1)  # (B, L + n)
        latents = self.trunk(inputs=tokens, attention_mask=mask).last_hidden_state
        return self.latent_norm(latents)

    def text_logits(self, latents: Tensor) -> Tensor:
        """(B, num_latents, d_latents) -> (B, n_text_latents, vocab_size): token *j* of latent j."""
        return self.text_head(latents[:, : self.config.n_text_latents])

    def image_readout(self, latents: Tensor) -> Tensor:
        """(B, num_latents, d_latents) -> (B, feature_dim): the pooled image features."""
        return self.image_head(latents[:, self.config.n_text_latents :].flatten(1))

    def _embed_text(self, text_ids: Tensor) -> Tensor:
        length = text_ids.shape[1]
        if length > self.config.max_text_tokens:
            raise ModelError(
                f"A text of {length} tokens was given to a Perceiver made for "
                f"{self.config.max_text_tokens}; cut it or raise max_text_tokens."
            )
        position = self.text_position.weight[:length]
        return self.token_embedding(text_ids) + position + self.modality.weight[0]

    def _embed_image(self, features: Tensor | None, pixels: Tensor | None) -> Tensor | None:
        if self.config.input_mode == "features":
            if pixels is not None:
                raise ModelError('This Perceiver has input_mode "features": pass image_features.')
            tokens = features
        else:
            if features is not None:
                raise ModelError('This Perceiver has input_mode "pixels": pass pixel_values.')
            tokens = None if pixels is None else self._patches(pixels)
        if tokens is None:
            return None
        n_tokens, known = tokens.shape[1], self.image_position.num_embeddings
        if n_tokens > known:
            raise ModelError(
                f"An image of {n_tokens} tokens was given to a Perceiver made for {known}; "
                "raise max_image_tokens (features) or image_size (pixels)."
            )
        tokens = self.image_norm(tokens.to(self.image_projection.weight.dtype))
        position = self.image_position.weight[:n_tokens]
        return self.image_projection(tokens) + position + self.modality.weight[1]

    def _patches(self, pixels: Tensor) -> Tensor:
        size, expected = self.config.patch_size, self.config.image_size
        if pixels.shape[-2:] != (expected, expected):
            raise ModelError(
                f"The Perceiver reads {expected} x {expected} pixels, found "
                f"{tuple(pixels.shape[-2:])}; resize the image."
            )
        # (B, 3, H, W) -> (B, 3 p^2, n) -> (B, n, 3 p^2)
        return nn.functional.unfold(pixels, kernel_size=size, stride=size).transpose(1, 2)


__getattr__, _names, _all = exports(
    __name__,
    {},
    old={
        "PerceiverCompressor": "tinyalign.model.perceiver:PerceiverNetwork",
        "PerceiverCompressorConfig": "tinyalign.model.perceiver_config:PerceiverNetworkConfig",
    },
)
