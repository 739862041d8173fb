"""Images in every form that a transformers processor takes, loaded as training loads them.

transformers by itself drops transparency, clips 16-bit grey and bounds no size; a served model is
to see the pixels that training, bank and evaluation see.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import os
import urllib.request
from typing import Any

from PIL import Image

from tinyalign.data.images import load_image, to_rgb
from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError

NAME_LENGTH = 60
"""Characters of a base64 text that an error message shows."""
SECONDS = 60
"""How long a server may stay silent."""


def as_rgb(images: Any) -> Any:
    """An image, or lists of them, with every one that is not pixels yet as upright RGB.

    Pictures, files, URLs, data URIs and base64 texts become what `data.images.load_image` gives;
    tensors, arrays and None stay as they are.

    Raises:
        DataError: a text that leads to no image, or an image that can't be decoded.
    """
    if isinstance(images, (list, tuple)):
        return [as_rgb(image) for image in images]
    if isinstance(images, Image.Image):
        return to_rgb(images)
    if isinstance(images, os.PathLike):
        return load_image(ImageRef(path=os.fspath(images)))
    if isinstance(images, str):
        return load_image(_reference(images))
    return images


def _reference(source: str) -> ImageRef:
    """What transformers takes a text for, in its order: a URL, a file, base64."""
    if source.startswith(("http://", "https://")):
        return ImageRef(path=source, data=_fetch(source))
    if os.path.isfile(source):
        return ImageRef(path=source)
    name = source if len(source) <= NAME_LENGTH else f"{source[:NAME_LENGTH]}..."
    text = source.partition(",")[2] if source.startswith("data:image/") else source
    try:
        return ImageRef(path=name, data=base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"image {name}: expected a file, a URL that starts with http:// or https://, or "
            "base64; found none of these; check the path"
        ) from error


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "tinyalign"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"image {url}: expected a picture at this address, found {error}; check the address, "
            "or fetch the picture yourself and pass its file"
        ) from error
