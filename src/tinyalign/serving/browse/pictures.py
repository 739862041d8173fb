"""The pictures of a bank's entries, as small JPEGs: from a data set, or from the files they name.

A bank holds no pictures, only where each one was and the hash of its pixels. A picture is shown
only where its pixels have the hash that the entry remembers, so neither a file that was replaced
nor any other file of the machine is ever sent, and it is always encoded anew.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import Image

from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError
from tinyalign.memory.bank.entries import Entry

SIDES = {"small": 320, "large": 1280}
"""Longest side of each size that is served, in pixels."""
TINY = 160
"""Up to this side a picture is enlarged by the page, and each pixel is seen."""
KEPT = 2_000
"""Small pictures kept in memory, of some 20 KB each."""
UPLOADS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF")
"""Formats that are decoded for a stranger; others of Pillow's start programs."""


class Pictures:
    """Finds, checks and encodes pictures. Any thread may ask."""

    def __init__(self, samples: Sequence[Sample] | None = None) -> None:
        """samples: the data set that entries came from; without it, only files are looked at."""
        self.samples = samples
        self._lock = threading.Lock()
        self._small = lru_cache(maxsize=KEPT)(self._jpeg)

    def may_have(self, entry: Entry) -> bool:
        """Whether a picture of this entry is worth asking for."""
        return self._index(entry.id) is not None or _is_file(entry.image_ref)

    def jpeg(self, size: str, image_hash: str, candidates: tuple[Entry, ...]) -> bytes | None:
        """The picture with these pixels as JPEG; None where none of the entries leads to it.

        size: one of `SIDES`. candidates: entries with that image.
        """
        make = self._small if size == "small" else self._jpeg
        return make(size, image_hash, candidates)

    def _jpeg(self, size: str, image_hash: str, candidates: tuple[Entry, ...]) -> bytes | None:
        for ref in self._references(candidates):
            try:
                image = load_image(ref)
            except DataError:
                continue
            if pixel_hash(image) == image_hash:
                return _encoded(image, SIDES[size])
        return None

    def _references(self, candidates: Iterable[Entry]) -> Iterable[ImageRef]:
        for entry in candidates:
            index = self._index(entry.id)
            if index is not None and self.samples is not None:
                with self._lock:
                    images = self.samples[index].images
                if images:
                    yield images[-1]
            if _is_file(entry.image_ref):
                yield ImageRef(path=entry.image_ref)

    def _index(self, entry_id: str) -> int | None:
        """Which sample an entry was. `photo#3`, one caption of several, is also just `photo`."""
        found = self._by_id.get(entry_id)
        return self._by_id.get(entry_id.rpartition("#")[0]) if found is None else found

    @cached_property
    def _by_id(self) -> dict[str, int]:
        with self._lock:
            return {one.id: index for index, one in enumerate(self.samples or ())}


def decode_upload(data: bytes) -> Image.Image:
    """A picture that came over the wire, as RGB. DataError for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=UPLOADS):
            pass
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(
            "this is not a picture that can be read; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from error
    return load_image(ImageRef(path="your picture", data=data))


def _encoded(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    tiny = max(image.size) <= TINY
    image.save(buffer, "JPEG", quality=95 if tiny else 85, subsampling=0 if tiny else 2)
    return buffer.getvalue()


def _is_file(path: str) -> bool:
    try:
        return bool(path) and Path(path).is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False
