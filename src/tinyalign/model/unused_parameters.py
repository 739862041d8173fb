"""The same graph on every rank: a batch without images or memories still runs what reads them.

Ranks that train together exchange the gradients of the same parameters. Where one rank's batch is
text alone, its connectors run on zeros, and their output is added times zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinyalign.model.backbones.vision import vision_dims


def touch_unused(
    model: Any, inputs_embeds: Tensor, images: Tensor | None, memories: Tensor | None
) -> Tensor:
    """inputs_embeds (B, L, d), unchanged, with the trained parts that the batch left out in its
    graph. model: a TinyAlignModel; images, memories: what the connectors gave, None if not run."""
    outputs = []
    if images is None and _trained(model.multi_modal_projector, model.vision_tower):
        outputs.append(_image_tokens(model))
    connector = model.memory_connector
    if memories is None and connector is not None and _trained(connector):
        values = torch.zeros(1, connector.k, *connector.shape, device=inputs_embeds.device)
        outputs.append(connector(values))
    for output in outputs:
        inputs_embeds = inputs_embeds + 0.0 * output.sum().to(inputs_embeds.dtype)
    return inputs_embeds


def _trained(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


def _image_tokens(model: Any) -> Tensor:
    """H_V (1, n, d) of a picture of zeros; a frozen tower is left out."""
    config, tower = model.config, model.vision_tower
    weight = model.multi_modal_projector.output.weight
    if not _trained(tower):
        if getattr(model, "_vision_dims", None) is None:
            model._vision_dims = vision_dims(
                config.vision_config, config.vision_feature_layer, config.vision_feature_select
            )
        features = torch.zeros(1, *model._vision_dims, device=weight.device)
    else:
        size = config.vision_config.image_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        training = tower.training
        tower.eval()  # running means of a CNN are not to see it
        features = model.get_vision_features(torch.zeros(1, 3, height, width))
        tower.train(training)
    return model.multi_modal_projector(features.to(weight.device, weight.dtype))
