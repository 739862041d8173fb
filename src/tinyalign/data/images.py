"""Encoded image -> RGB pixels, the same for every room: rotated upright, flattened, bounded."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError
from tinyalign.hashing import hash_bytes

MAX_PIXELS = 10_000_000
"""Larger images are made smaller while they are decoded; no vision tower sees the difference."""


class MissingImageError(DataError):
    """An image file that is not there."""


def load_image(ref: ImageRef) -> Image.Image:
    """Decode `ref` into an upright RGB image of at most `MAX_PIXELS` pixels.

    EXIF rotation is applied; grey becomes RGB; transparency is laid on white.

    Raises:
        DataError: the file is missing, is no image, or breaks off early. The message names it.
    """
    source: io.BytesIO | Path
    if ref.data is not None:
        source = io.BytesIO(ref.data)
    else:
        source = Path(ref.name)
        if not source.is_file():
            raise MissingImageError(
                f"image {ref.name}: expected a file, found none; check the path, or the image "
                "folder of a data set"
            )
    try:
        with Image.open(source) as image:
            _shrink_while_decoding(image)
            image.load()
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(
            f"image {ref.name}: expected a complete image, found one that can't be decoded "
            f"({error}); fetch it again, or leave it out"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as upright RGB, the way `load_image` gives it.

    EXIF rotation is applied; grey, also of 16 bits, becomes RGB; transparency is laid on white;
    more than `MAX_PIXELS` pixels are made fewer. The picture given is left as it is.
    """
    if image.width * image.height > MAX_PIXELS:
        image = image.copy()
        _shrink_while_decoding(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        front = image.convert("RGBA")
        white = Image.new("RGBA", front.size, "white")
        return Image.alpha_composite(white, front).convert("RGB")
    return image.convert("RGB")


def image_hash(ref: ImageRef) -> str:
    """16 hex digits of the decoded RGB pixels: equal for one photo in two lossless containers."""
    return pixel_hash(load_image(ref))


def pixel_hash(image: Image.Image) -> str:
    """As `image_hash`, of an image that is decoded already."""
    rgb = image.convert("RGB")
    return hash_bytes(f"{rgb.width}x{rgb.height}|".encode() + rgb.tobytes())


def _shrink_while_decoding(image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / pixels)
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image.thumbnail(size)  # JPEG decodes straight to 1/2, 1/4 or 1/8 on the way


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey deeper than 8 bits, which `Image.convert` would clip to white."""
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.max(initial=0.0) > 255:
        pixels = pixels / 257  # 65535 -> 255
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).convert("RGB")
