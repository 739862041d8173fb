"""Makes transformers' Auto classes know TinyAlign's models.

`import tinyalign` arranges that each function is called as soon as the Auto classes that it adds
to exist (`tinyalign.imports`).
"""

from __future__ import annotations


def register() -> None:
    """Register all configs, models and the processor. Calling it again changes nothing."""
    register_configs()
    register_models()
    register_processor()


def register_configs() -> None:
    """Add our configs to AutoConfig."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from tinyalign.model.backbones.efficientnet_lite_config import EfficientNetLiteConfig
    from tinyalign.model.configuration import TinyAlignConfig
    from tinyalign.model.perceiver_config import PerceiverNetworkConfig

    for config in (TinyAlignConfig, PerceiverNetworkConfig, EfficientNetLiteConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models() -> None:
    """Add our models to AutoModel and AutoModelForImageTextToText."""
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForImageTextToText

    from tinyalign.model.backbones.efficientnet_lite import (
        EfficientNetLiteConfig,
        EfficientNetLiteModel,
    )
    from tinyalign.model.configuration import TinyAlignConfig
    from tinyalign.model.modeling import TinyAlignForConditionalGeneration, TinyAlignModel
    from tinyalign.model.perceiver import PerceiverNetwork, PerceiverNetworkConfig

    AutoModel.register(TinyAlignConfig, TinyAlignModel, exist_ok=True)
    AutoModel.register(PerceiverNetworkConfig, PerceiverNetwork, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        TinyAlignConfig, TinyAlignForConditionalGeneration, exist_ok=True
    )


def register_processor() -> None:
    """Add our processor to AutoProcessor."""
    from transformers.models.auto.processing_auto import AutoProcessor

    from tinyalign.model.configuration import TinyAlignConfig
    from tinyalign.model.processing import TinyAlignProcessor

    AutoProcessor.register(TinyAlignConfig, TinyAlignProcessor, exist_ok=True)
