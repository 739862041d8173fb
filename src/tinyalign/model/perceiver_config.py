"""The sizes of the Perceiver, apart from the network: known without torch."""

from __future__ import annotations

from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from tinyalign.errors import ConfigError


class PerceiverNetworkConfig(PreTrainedConfig):
    """Sizes of the Perceiver; the defaults are table 4 of the paper.

    `input_mode` "features" reads the frozen vision tower's tokens (width `feature_dim`);
    "pixels" reads `patch_size` patches of an `image_size` square image, as the official release
    does. `feature_dim` is in both modes the width of the pooled features to be reconstructed.
    `n_text_latents` latents speak for the text, the rest for the image.
    """

    model_type = "tinyalign_perceiver"

    num_latents: int = 32
    d_latents: int = 96
    d_model: int = 128
    num_blocks: int = 1
    num_self_attends_per_block: int = 8
    num_self_attention_heads: int = 8
    num_cross_attention_heads: int = 8
    qk_channels: int = 96
    v_channels: int = 96
    image_size: int = 384
    patch_size: int = 16
    input_mode: Literal["features", "pixels"] = "features"
    feature_dim: int = 1152
    max_image_tokens: int = 1024
    n_text_latents: int = 24
    vocab_size: int = 4096
    max_text_tokens: int = 256
    dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 0 < self.n_text_latents < self.num_latents:
            raise ConfigError(
                f"n_text_latents must lie between 1 and num_latents - 1 = {self.num_latents - 1} "
                f"so that some latents are left for the image; found {self.n_text_latents}."
            )

    @property
    def n_image_latents(self) -> int:
        """Latents that the image read-out sees: the last ones."""
        return self.num_latents - self.n_text_latents
