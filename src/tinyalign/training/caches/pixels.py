"""Decoded and resized images, kept as the bytes they are before they are normalised.

For towers that are trained, and for data whose features would not fit on the disk. Normalising
treats every number by itself, so a table of 256 entries a channel, filled by the image processor,
gives exactly what the processor would give. Where a processor's resized pixels are no whole
numbers, its final float32 output is kept instead. `PixelCodec.found` tries which holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyalign.data.images import pixel_hash
from tinyalign.data.sample import Sample
from tinyalign.hashing import hash_json
from tinyalign.log import logger
from tinyalign.model.backbones.vision import VisionEncoder, pixel_settings
from tinyalign.training.caches.features import FeatureSource, MappedFeatures
from tinyalign.training.caches.row_file import RowFile

LEVELS = 256


@dataclass(frozen=True)
class PixelCodec:
    """Pixels as a cache keeps them, and back: `decode(encode(image))` is the live value."""

    processor: Any
    shape: tuple[int, int, int]
    """(3, H, W) of one image."""
    table: np.ndarray | None
    """float32 (3, 256): normalised value of each level; None where float32 is kept."""

    @classmethod
    def found(cls, processor: Any) -> PixelCodec:
        """The codec that gives back a trial image to the bit: bytes if they do, else float32."""
        trial = _trial_image()
        live = _processed(processor, trial)
        shape = (live.shape[0], live.shape[1], live.shape[2])
        try:
            codec = cls(processor, shape, _level_table(processor))
            if np.array_equal(codec.decode(codec.encode(trial)), live):
                return codec
        except (TypeError, ValueError, AttributeError):  # a processor without these switches
            logger.info("pixels: this image processor is kept in float32, four times the bytes")
        return cls(processor, shape, None)

    @property
    def dtype(self) -> np.dtype:
        """Of what is kept: uint8, or float32."""
        return np.dtype(np.float32 if self.table is None else np.uint8)

    def encode(self, image: Image.Image) -> np.ndarray:
        """What is kept of an RGB image: (3, H, W). ValueError if its pixels are no bytes."""
        if self.table is None:
            return _processed(self.processor, image)
        raw = _processed(self.processor, image, do_rescale=False, do_normalize=False)
        kept = raw.astype(np.uint8)
        if not np.array_equal(kept, raw):
            raise ValueError("resized pixels are no whole numbers from 0 to 255")
        return kept

    def decode(self, kept: np.ndarray) -> np.ndarray:
        """float32 (3, H, W), as the tower takes it."""
        if self.table is None:
            return np.array(kept)
        return np.stack([np.take(row, plane) for row, plane in zip(self.table, kept)])


def _processed(processor: Any, image: Image.Image, **switches: bool) -> np.ndarray:
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return np.asarray(processor(images=[rgb], return_tensors="np", **switches)["pixel_values"][0])


def _level_table(processor: Any) -> np.ndarray:
    """What the processor makes of every level of every channel: float32 (3, 256)."""
    side = int(LEVELS**0.5)
    levels = np.arange(LEVELS, dtype=np.uint8).reshape(side, side)
    image = np.stack([levels] * 3, axis=-1)  # (16, 16, 3)
    switches = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    known = {name: value for name, value in switches.items() if hasattr(processor, name)}
    made = processor(images=[image], return_tensors="np", **known)["pixel_values"][0]
    return np.asarray(made, np.float32).reshape(3, LEVELS)


def _trial_image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, LEVELS, (70, 90, 3), dtype=np.uint8)
    return Image.fromarray(noise)


class PixelCache(FeatureSource):
    """Pixels kept in `folder`/pixels-SETTINGS, decoded once an image; features are computed live.

    Rows are known by the hash of the decoded image; the folder by the image processor's settings.
    """

    precision = "live"

    def __init__(self, folder: str | Path, encoder: VisionEncoder) -> None:
        self.codec = PixelCodec.found(encoder.processor)
        processor = encoder.processor
        decides = [
            type(processor).__name__,
            pixel_settings(processor),
            self.codec.shape,
            str(self.codec.dtype),
        ]
        super().__init__(Path(folder) / f"pixels-{hash_json(decides)}", encoder)
        self.rows = RowFile(self.folder / "pixels.bin", self.codec.shape, self.codec.dtype)

    def _announce(self, n_images: int) -> None:
        size = n_images * self.rows.row_bytes / 1e6
        logger.info("pixels: %d images, %.0f MB, into %s", n_images, size, self.folder)

    def _store(self, refs: list[str], images: list[Image.Image]) -> None:
        hashes = [pixel_hash(image) for image in images]
        known = self.index.rows_of_hashes(hashes)
        kept = {
            name: self.codec.encode(image)
            for name, image in zip(hashes, images)
            if name not in known
        }
        self.index.add(
            refs, hashes, lambda first, new: self.rows.write(first, [kept[name] for name in new])
        )

    def _features(
        self, samples: Sequence[Sample], rows: list[list[int]], skipped: list[tuple[str, str]]
    ) -> CachedPixels:
        return CachedPixels(self, rows, skipped)


class CachedPixels(MappedFeatures):
    """Features computed from cached pixels each time they are asked for."""

    source: PixelCache

    def of_rows(self, rows: Sequence[int]) -> Tensor:
        return self.source.encoder.encode_pixels(torch.stack(self.pixels_of_rows(rows))).cpu()

    def pixels(self, index: int) -> list[Tensor]:
        """float32 (3, H, W) of each image of sample `index`, as the image processor gives it."""
        return self.pixels_of_rows(self.rows[index])

    def pixels_of_rows(self, rows: Sequence[int]) -> list[Tensor]:
        """As `pixels`, of rows of the cache. IndexError for an image that can't be read."""
        mapped, decode = self.mapped(rows), self.source.codec.decode
        return [torch.from_numpy(decode(mapped[row])) for row in rows]
