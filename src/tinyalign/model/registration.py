"""Makes transformers' Auto classes know TinyAlign's models; `import tinyalign` calls it."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Register all configs, models and the processor. Calling it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from tinyalign.model.backbones.efficientnet_lite import (
        EfficientNetLiteConfig,
        EfficientNetLiteModel,
    )
    from tinyalign.model.configuration import TinyAlignConfig
    from tinyalign.model.modeling import TinyAlignForConditionalGeneration, TinyAlignModel
    from tinyalign.model.perceiver import PerceiverCompressor, PerceiverCompressorConfig
    from tinyalign.model.processing import TinyAlignProcessor

    models: dict[Any, Any] = {
        TinyAlignConfig: TinyAlignModel,
        PerceiverCompressorConfig: PerceiverCompressor,
        EfficientNetLiteConfig: EfficientNetLiteModel,
    }
    for config, model in models.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    AutoModelForImageTextToText.register(
        TinyAlignConfig, TinyAlignForConditionalGeneration, exist_ok=True
    )
    AutoProcessor.register(TinyAlignConfig, TinyAlignProcessor, exist_ok=True)
