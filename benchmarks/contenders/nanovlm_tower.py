"""EfficientNet and our connector in the places where nanoVLM has its own tower and projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from contenders.pairs import Pair


class Tower(nn.Module):
    """Pixels (B, 3, 260, 260) from 0 to 1 -> features (B, 25, 1280); always in evaluation mode."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.tower, self.layer, self.select = encoder.tower, encoder.layer, encoder.select

    def train(self, mode: bool = True) -> Tower:
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        from tinyalign.model.backbones.vision import tower_features

        scaled = (pixels * 255 - 127) / 128
        return tower_features(self.tower, scaled, self.layer, self.select)


def tower(pair: Pair) -> Tower:
    """The pair's tower in float32, as nanoVLM keeps its own."""
    from tinyalign.model.backbones.vision import VisionEncoder

    return Tower(VisionEncoder.load(pair.vision, dtype=torch.float32))


def connector(config: Any) -> nn.Module:
    """The pair's connector, with new weights."""
    from tinyalign.model.connectors.image import MLPConnector

    made = MLPConnector(1280, config.lm_hidden_dim, token_rms=0.1)
    made.reset_parameters()
    return made
