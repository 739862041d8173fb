"""The configuration of EfficientNet-Lite, apart from the network: known without torch."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from tinyalign.errors import ModelError

# Sizes in pixels that the published weights were trained at.
IMAGE_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 280, "lite4": 300}


class EfficientNetLiteConfig(PreTrainedConfig):
    """`variant` "lite0" to "lite4"; the last map is pooled to `pool_grid` x `pool_grid` tokens."""

    model_type = "efficientnet_lite"

    variant: str = "lite2"
    image_size: int = 260
    hidden_size: int = 1280
    pool_grid: int = 5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.variant not in IMAGE_SIZES:
            raise ModelError(
                f"Unknown EfficientNet-Lite variant {self.variant!r}; known: "
                f"{', '.join(IMAGE_SIZES)}."
            )
