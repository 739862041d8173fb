"""Any vision tower, read in one way: pixels -> patch tokens (B, n, D), without CLS or registers.

The bank, the Perceiver, the feature cache and the model itself all come through
`tower_features`, so that what is cached equals what is computed live.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig

from tinyalign.errors import ModelError
from tinyalign.hashing import hash_json, hash_tensors

Layer = int | list[int]
Select = Literal["patch", "full"]

PACKAGED = ("efficientnet-lite0", "efficientnet-lite2")

# What of an image processor changes the pixels; the rest (class names, versions) does not.
_PIXEL_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
)


def load_vision(spec: str | Path, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The tower and image processor of a hub id, a folder, or a packaged "efficientnet-lite2".

    Of a two-tower checkpoint (CLIP, SigLIP) only the vision half is loaded. The tower comes in
    evaluation mode. Raises ModelError when a folder holds no vision tower.
    """
    name = str(spec)
    if name in PACKAGED:
        from tinyalign.model.backbones.efficientnet_lite import (
            EfficientNetLiteModel,
            image_processor,
        )

        packaged = EfficientNetLiteModel.from_package(name, dtype)
        return packaged, image_processor(packaged.config)
    try:
        config: Any = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"vision tower {name!r} cannot be loaded; expected a hub id, a folder or one of "
            f"{', '.join(PACKAGED)}. {str(error).strip().splitlines()[0]}"
        ) from error
    config = getattr(config, "vision_config", None) or config
    try:
        cls: Any = AutoModel._model_mapping[type(config)]
    except KeyError:
        raise ModelError(
            f"{name} is a {config.model_type!r} model, which AutoModel cannot load as a vision "
            "tower. Use a hub id or folder of SigLIP, CLIP, DINOv2 or another image encoder, or "
            f"one of {', '.join(PACKAGED)}."
        ) from None
    tower = cls.from_pretrained(name, config=config, dtype=dtype or torch.float32)
    return tower.eval(), AutoImageProcessor.from_pretrained(name)


def tower_features(
    tower: Any, pixel_values: Tensor, layer: Layer = -1, select: Select = "patch"
) -> Tensor:
    """Tokens (B, n, D) of `pixel_values` (B, 3, H, W), in the tower's dtype.

    layer -1 is the tower's `last_hidden_state` (with its closing norm, if it has one); any other
    index is taken from `hidden_states`; a list concatenates layers along the width.
    select "patch" drops what stands before the patches: CLIP's class token, DINOv2's class token
    and registers, nothing for SigLIP. "full" keeps all. No gradient is kept for a frozen tower.
    Raises ModelError for pixels that are not (B, 3, H, W).
    """
    if pixel_values.ndim != 4:
        raise ModelError(
            "The vision tower expects pixel_values (images, 3, height, width), found shape "
            f"{tuple(pixel_values.shape)}. Processors that cut images into variable patches "
            "(SigLIP2 NaFlex) are not supported; use the fixed-resolution checkpoint."
        )
    layers = [layer] if isinstance(layer, int) else list(layer)
    weight = next(tower.parameters())
    trainable = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trainable):
        output = tower(
            pixel_values.to(weight.device, weight.dtype),
            output_hidden_states=layers != [-1],
            return_dict=True,
        )
        picked = [_as_tokens(_layer(output, index)) for index in layers]
        if select == "patch":
            picked = [_drop_prefix(tokens, tower.config, pixel_values) for tokens in picked]
        return picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1)


def _layer(output: Any, index: int) -> Tensor:
    if index == -1:
        return output.last_hidden_state
    if output.hidden_states is None:
        raise ModelError(f"This vision tower has no hidden states; use layer -1, not {index}.")
    if not -len(output.hidden_states) <= index < len(output.hidden_states):
        raise ModelError(
            f"vision_feature_layer {index} is out of range: the tower has "
            f"{len(output.hidden_states)} hidden states."
        )
    return output.hidden_states[index]


def _as_tokens(features: Tensor) -> Tensor:
    # A CNN's map (B, C, h, w) -> (B, h*w, C); tokens pass as they are.
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def _drop_prefix(tokens: Tensor, config: PreTrainedConfig, pixel_values: Tensor) -> Tensor:
    """Drop the tokens before the patches. How many is counted, not guessed from a model's name."""
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return tokens
    rows, columns = (patch, patch) if isinstance(patch, int) else tuple(patch)
    n_patches = (pixel_values.shape[-2] // rows) * (pixel_values.shape[-1] // columns)
    n_prefix = tokens.shape[1] - n_patches
    if n_prefix < 0:
        raise ModelError(
            f"The vision tower gave {tokens.shape[1]} tokens for {n_patches} patches of {patch} "
            'pixels; this tower merges patches, so use vision_feature_select="full".'
        )
    return tokens[:, n_prefix:]


def vision_dims(
    config: PreTrainedConfig, layer: Layer = -1, select: Select = "patch"
) -> tuple[int, int]:
    """(n_tokens, width) that a tower with this config gives, found by a run without numbers."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    with torch.device("meta"):
        tower = AutoModel.from_config(config).eval()
        features = tower_features(tower, torch.empty(1, 3, height, width), layer, select)
    return features.shape[1], features.shape[2]


def pooled(features: Tensor) -> Tensor:
    """(B, n, D) -> (B, D): the mean over tokens."""
    return features.mean(dim=1)


class VisionEncoder:
    """A frozen tower with its image processor: PIL images in, features (B, n, D) float32 out."""

    def __init__(
        self, tower: Any, processor: Any, layer: Layer = -1, select: Select = "patch"
    ) -> None:
        self.tower = tower
        self.processor = processor
        self.layer = layer
        self.select: Select = select
        self._dims: tuple[int, int] | None = None

    @classmethod
    def load(
        cls,
        spec: str | Path,
        layer: Layer = -1,
        select: Select = "patch",
        dtype: torch.dtype | None = None,
    ) -> VisionEncoder:
        """The encoder of a hub id, folder or packaged name (see `load_vision`)."""
        return cls(*load_vision(spec, dtype), layer, select)

    @classmethod
    def from_model(cls, model: Any, processor: Any) -> VisionEncoder:
        """The encoder inside a TinyAlign model, so that a bank can be made for exactly it."""
        config = model.config
        return cls(
            model.get_encoder("image"),
            processor.image_processor,
            config.vision_feature_layer,
            config.vision_feature_select,
        )

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, 3, H, W) float32, as the tower wants them."""
        rgb = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        return self.processor(images=rgb, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, D) float32 on the tower's device."""
        return tower_features(self.tower, pixel_values, self.layer, self.select).float()

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> features (B, n, D) float32 on the tower's device."""
        return self.encode_pixels(self.pixels(images))

    @property
    def dims(self) -> tuple[int, int]:
        """(n, D), from one grey image."""
        if self._dims is None:
            features = self.encode([Image.new("RGB", (64, 64), (127, 127, 127))])
            self._dims = (features.shape[1], features.shape[2])
        return self._dims

    @property
    def n_tokens(self) -> int:
        return self.dims[0]

    @property
    def width(self) -> int:
        return self.dims[1]

    @property
    def hash(self) -> str:
        """Hash of weights, pixel settings, layer and selection: what a bank must agree on.

        Weights are rounded to bfloat16 first, so that the same tower held in another precision
        still counts as the same tower.
        """
        return vision_hash(self.tower, self.processor, self.layer, self.select)


def vision_hash(tower: nn.Module, processor: Any, layer: Layer, select: Select) -> str:
    """See `VisionEncoder.hash`."""
    weights = {
        name: tensor.detach().to(torch.bfloat16)
        for name, tensor in tower.state_dict().items()
        if tensor.is_floating_point()
    }
    settings = pixel_settings(processor)
    seen = {"weights": hash_tensors(weights), "layer": layer, "select": select, **settings}
    return hash_json(seen)


def pixel_settings(processor: Any) -> dict[str, Any]:
    """What of an image processor changes the pixels, as plain values."""
    return {name: _plain(getattr(processor, name, None)) for name in _PIXEL_SETTINGS}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 8)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # PIL's resampling enums
    if value is None or isinstance(value, bool | str):
        return value
    # SizeDict or dict: only the sides that are set
    items = value.items() if hasattr(value, "items") else vars(value).items()
    return {key: _plain(item) for key, item in items if item is not None}
