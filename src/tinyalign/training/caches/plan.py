"""Which image cache a run keeps: an estimate of bytes and seconds for each, and a choice.

A run needs every image a number of times (`CacheNeed.passes`). Without a cache each time costs
decoding and the tower; with features, a read; with pixels, a read and the tower. Building costs
each image not yet there once. Reading is counted at `READ_BYTES` a second.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError
from tinyalign.model.backbones.vision import VisionEncoder

CacheKind = Literal["features", "pixels", "none"]

READ_BYTES = 0.5e9
"""Bytes a second that a memory map gives when it is cold."""
DISK_SHARE = 0.5
"""A cache may take at most this share of the free disk."""
SLACK = 1.05
"""Features may cost this much more time than no cache: later runs and evaluations share them."""
PROBE_IMAGES = 8


@dataclass(frozen=True)
class CacheNeed:
    """What a run asks of an image cache."""

    images: int
    """Different images."""
    passes: float
    """How often each is needed: epochs, evaluations, Perceiver, bank and queries."""
    trains_vision: bool
    """Whether the tower changes, so that its features cannot be kept."""
    feature_bytes: int
    """Of one image's features."""
    pixel_bytes: int
    """Of one image's kept pixels."""
    free_bytes: int
    """Free on the disk of the cache folder."""
    features_there: float = 0.0
    """Share of the images whose features are there already."""
    pixels_there: float = 0.0
    """Share of the images whose pixels are there already."""


@dataclass(frozen=True)
class CacheProbe:
    """Seconds an image, measured on a few of them."""

    decode: float
    """Decoding and the image processor."""
    tower: float
    """The vision tower."""


@dataclass(frozen=True)
class CacheOption:
    """One kind of cache, estimated for a run."""

    kind: CacheKind
    new_bytes: int
    """To be written."""
    build_seconds: float
    """Before training starts."""
    total_seconds: float
    """All that the run spends on images, building included."""
    refused: str = ""
    """Why it is out of the question; "" where it is not."""


@dataclass(frozen=True)
class CachePlan:
    """The options, and the one that was chosen."""

    options: tuple[CacheOption, ...]
    chosen: CacheKind
    reason: str

    def lines(self) -> list[str]:
        """One sentence an option, then the choice."""
        told = [
            f"cache {option.kind}: {option.new_bytes / 1e6:,.0f} MB to write, "
            f"{option.build_seconds:,.0f} s to build, {option.total_seconds:,.0f} s on images in "
            f"all{'; ' + option.refused if option.refused else ''}"
            for option in self.options
        ]
        return [*told, f"cache: {self.chosen}, because {self.reason}"]


def plan_cache(need: CacheNeed, probe: CacheProbe) -> CachePlan:
    """The cheapest cache that fits, where features may cost `SLACK` times no cache at all."""
    live = need.passes * need.images * (probe.decode + probe.tower)
    none = CacheOption("none", 0, 0.0, live)
    features = _option(
        "features", need, need.feature_bytes, need.features_there, probe.decode + probe.tower, 0.0
    )
    pixels = _option("pixels", need, need.pixel_bytes, need.pixels_there, probe.decode, probe.tower)
    options = (features, pixels, none)
    if not features.refused and features.total_seconds <= SLACK * live:
        return CachePlan(options, "features", _why(features, none))
    if not pixels.refused and pixels.total_seconds < live:
        return CachePlan(options, "pixels", _why(pixels, none))
    refusals = [f"{o.kind}: {o.refused}" for o in (features, pixels) if o.refused]
    return CachePlan(options, "none", "; ".join(refusals) or "no cache would save time")


def _option(
    kind: CacheKind, need: CacheNeed, row: int, there: float, build: float, each_pass: float
) -> CacheOption:
    """build, each_pass: seconds an image, once and at every use; reading comes on top."""
    missing = need.images * (1.0 - there)
    new_bytes = round(missing * row)
    seconds = missing * build
    total = seconds + need.passes * need.images * (each_pass + row / READ_BYTES)
    room = DISK_SHARE * need.free_bytes
    refused = ""
    if kind == "features" and need.trains_vision:
        refused = "the tower is trained, so its features change at every step"
    elif new_bytes > room:
        refused = f"takes more than {DISK_SHARE:.0%} of the {need.free_bytes / 1e9:,.1f} GB free"
    return CacheOption(kind, new_bytes, seconds, total, refused)


def _why(option: CacheOption, none: CacheOption) -> str:
    saved = none.total_seconds - option.total_seconds
    if saved < 0:
        return f"it costs only {-saved:,.0f} s more than none and later runs share it"
    return f"it saves about {saved:,.0f} s of {none.total_seconds:,.0f} s on images"


def measure(encoder: VisionEncoder, images: Sequence[ImageRef]) -> CacheProbe:
    """Time a few images, after one that warms up; unreadable ones are left out.

    Raises DataError if none of them can be read.
    """
    pictures: list[Image.Image] = []
    decode = 0.0
    for ref in images[: PROBE_IMAGES + 1]:
        started = time.perf_counter()
        try:
            picture = load_image(ref)
        except DataError:
            continue
        pixel_hash(picture)
        encoder.pixels([picture])
        decode += (time.perf_counter() - started) if pictures else 0.0
        pictures.append(picture)
    if not pictures:
        raise DataError(f"none of {len(images)} images could be read to estimate a cache")
    pixels = encoder.pixels(pictures)
    encoder.encode_pixels(pixels[:1]).cpu()
    started = time.perf_counter()
    encoder.encode_pixels(pixels).cpu()
    tower = (time.perf_counter() - started) / len(pictures)
    return CacheProbe(decode / max(1, len(pictures) - 1), tower)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or will be."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free
