"""Frozen vision features of a data set: from a memory-mapped cache, or computed when asked for.

The cache keeps `features.bin`, rows (n, D) one after the other, and an index that knows each row
by the hash of the decoded image. Features are on the disk before the index names them: a kill
loses at most the batch in the making, and two runs may fill one cache at the same time.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyalign.data.decoding import DecodedImages, in_batches
from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError, DataError, first_few
from tinyalign.log import logger, progress
from tinyalign.training.caches.image_index import ImageIndex, reference
from tinyalign.training.caches.row_file import RowFile

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder

Precision = Literal["bfloat16", "float32"]
STORED: dict[str, tuple[np.dtype, torch.dtype]] = {
    "bfloat16": (np.dtype(np.uint16), torch.bfloat16),
    "float32": (np.dtype(np.float32), torch.float32),
}


def default_cache_folder() -> Path:
    """$TINYALIGN_CACHE, or ~/.cache/tinyalign."""
    return Path(os.environ.get("TINYALIGN_CACHE", "~/.cache/tinyalign")).expanduser()


class Features(ABC):
    """The features of a list of samples: item i is (n, D) float32 of sample i's last image.

    The last image of a sample is the one its memory placeholders stand behind, the one a model
    looks memories up by, and the one a bank remembers.
    """

    def __init__(
        self, source: FeatureSource, rows: list[list[int]], skipped: list[tuple[str, str]]
    ) -> None:
        """rows: of each sample's images in the source's index; -1 for one that can't be read.
        skipped: ids of samples with such an image, and why."""
        self.source = source
        self.rows = rows
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.of_rows(self.rows[index][-1:])[0]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, n, D) float32: the last image of each sample."""
        return self.of_rows([self.rows[i][-1] for i in indices])

    @abstractmethod
    def of_rows(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), n, D) float32. IndexError for an image that can't be read."""

    def will_need(self, indices: Sequence[int]) -> None:  # noqa: B027 - nothing to read
        """The images of these samples are asked for next: a cache on the disk reads them ahead."""

    def usable(self) -> list[int]:
        """Indices of the samples all of whose images can be read."""
        return [i for i, row in enumerate(self.rows) if -1 not in row]

    def image_hashes(self) -> list[str]:
        """Hash of each sample's last image; "" without one."""
        return self.source.index.hashes([row[-1] if row else -1 for row in self.rows])


class FeatureSource(ABC):
    """Gives the features of data sets, by one encoder; finds bad images once, up front."""

    precision: str

    def __init__(self, folder: Path, encoder: VisionEncoder) -> None:
        self.folder = folder
        self.encoder = encoder
        self.index = ImageIndex(folder)

    @property
    def row_shape(self) -> tuple[int, int]:
        """(n, D) of one image."""
        return self.encoder.dims

    def cover(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int = 32,
        strict: bool = False,
        workers: int = 0,
    ) -> Features:
        """Features of every image of `samples`; what is not known yet is looked at first.

        A sample with an image that can't be read is listed in `skipped` and warned of; with
        `strict` it raises DataError. workers: processes that decode images; what is stored is
        the same with any number of them.
        """
        refs = [[reference(image) for image in sample.images] for sample in samples]
        known = self.index.rows_of_refs(ref for row in refs for ref in row)
        missing: dict[str, tuple[int, int]] = {}
        for i, row in enumerate(refs):
            for j, ref in enumerate(row):
                if ref not in known:
                    missing.setdefault(ref, (i, j))
        reasons = self._add(samples, missing, batch_size, strict, workers) if missing else {}
        known |= self.index.rows_of_refs(missing)
        bad = [(i, [ref for ref in row if ref not in known]) for i, row in enumerate(refs)]
        skipped = [(samples[i].id, reasons[unread[0]]) for i, unread in bad if unread]
        if skipped:
            shown = first_few(reason for _, reason in skipped)
            logger.warning("images: %d of %d samples unusable: %s", len(skipped), len(refs), shown)
        rows = [[known.get(ref, -1) for ref in row] for row in refs]
        return self._features(samples, rows, skipped)

    def _add(
        self,
        samples: Sequence[Sample],
        missing: dict[str, tuple[int, int]],
        batch_size: int,
        strict: bool,
        workers: int,
    ) -> dict[str, str]:
        """Decode and store what is missing; returns reference → reason of what failed."""
        self._announce(len(missing))
        reasons: dict[str, str] = {}
        places = list(missing.values())
        decoded = DecodedImages(samples, places)
        todo = zip(missing, places)
        with progress("Looking at images", len(places)) as advance:
            for batch in in_batches(decoded, range(len(places)), batch_size, workers):
                images: dict[str, Image.Image] = {}
                for found, (ref, (i, _)) in zip(batch, todo):
                    if not isinstance(found, DataError):
                        images[ref] = found
                    elif strict:
                        raise found
                    else:
                        reasons[ref] = f"sample {samples[i].id}: {found}"
                if images:
                    self._store(list(images), list(images.values()))
                advance(len(batch))
        return reasons

    @abstractmethod
    def _announce(self, n_images: int) -> None:
        """Say what is about to be computed, and its size."""

    @abstractmethod
    def _store(self, refs: list[str], images: list[Image.Image]) -> None:
        """Add a batch of decoded images to the index."""

    @abstractmethod
    def _features(
        self, samples: Sequence[Sample], rows: list[list[int]], skipped: list[tuple[str, str]]
    ) -> Features:
        """The features of samples that are in the index now."""


class FeatureCache(FeatureSource):
    """Features kept in `folder`/features-ENCODER-PRECISION, computed once an image."""

    def __init__(
        self, folder: str | Path, encoder: VisionEncoder, precision: Precision = "bfloat16"
    ) -> None:
        """Raises ConfigError for a precision that is neither "bfloat16" nor "float32"."""
        if precision not in STORED:
            raise ConfigError(f"cache precision: expected one of {list(STORED)}, found {precision}")
        self.precision: Precision = precision
        super().__init__(Path(folder) / f"features-{encoder.hash}-{precision}", encoder)

    @property
    def rows(self) -> RowFile:
        """The file of features, a row (n, D) an image."""
        return RowFile(self.folder / "features.bin", self.row_shape, STORED[self.precision][0])

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.rows.row_bytes

    def _announce(self, n_images: int) -> None:
        size = n_images * self.row_bytes / 1e6
        logger.info("features: %d images, %.0f MB, into %s", n_images, size, self.folder)

    def _store(self, refs: list[str], images: list[Image.Image]) -> None:
        hashes = [pixel_hash(image) for image in images]
        known = self.index.rows_of_hashes(hashes)
        first = {name: i for i, name in reversed(list(enumerate(hashes))) if name not in known}
        arrays: dict[str, np.ndarray] = {}
        if first:
            encoded = self.encoder.encode([images[i] for i in first.values()]).cpu()
            arrays = dict(zip(first, _to_array(encoded, self.precision)))

        def store(row: int, new: list[str]) -> None:
            self.rows.write(row, [arrays[name] for name in new])

        self.index.add(refs, hashes, store)

    def _features(
        self, samples: Sequence[Sample], rows: list[list[int]], skipped: list[tuple[str, str]]
    ) -> CachedFeatures:
        return CachedFeatures(self, rows, skipped)


class MappedFeatures(Features):
    """Features of what a cache keeps in one file, which every process maps for itself."""

    source: Any
    _map: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_map": None}

    def will_need(self, indices: Sequence[int]) -> None:
        self.source.rows.will_need([row for index in indices for row in self.rows[index]])

    def mapped(self, rows: Sequence[int]) -> np.ndarray:
        """The file, of which `rows` are to be read. IndexError for an image that can't be."""
        if any(row < 0 for row in rows):
            raise IndexError("an image that can't be read is not in the cache")
        if self._map is None:
            self._map = self.source.rows.map()
        return self._map


class CachedFeatures(MappedFeatures):
    """Features read from a cache's memory map."""

    source: FeatureCache

    def of_rows(self, rows: Sequence[int]) -> Tensor:
        return self.stored(rows).float()

    def images(self, index: int) -> Tensor:
        """(images, n, D) in the stored precision: all images of sample `index`."""
        return self.stored(self.rows[index])

    def stored(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), n, D) in the stored precision."""
        copied = torch.from_numpy(self.mapped(rows)[list(rows)])  # fancy indexing copies
        return copied.view(STORED[self.source.precision][1])


class LiveFeatures(FeatureSource):
    """Features that are never kept: for data sets whose features would fill the disk.

    Only the hashes of decoded images are, in `folder`/images.
    """

    precision = "live"

    def __init__(self, folder: str | Path, encoder: VisionEncoder) -> None:
        super().__init__(Path(folder) / "images", encoder)

    def _announce(self, n_images: int) -> None:
        logger.info("images: checking %d", n_images)

    def _store(self, refs: list[str], images: list[Image.Image]) -> None:
        self.index.add(refs, [pixel_hash(image) for image in images])

    def _features(
        self, samples: Sequence[Sample], rows: list[list[int]], skipped: list[tuple[str, str]]
    ) -> ComputedFeatures:
        return ComputedFeatures(self, samples, rows, skipped)


class ComputedFeatures(Features):
    """Features computed each time they are asked for."""

    def __init__(
        self,
        source: LiveFeatures,
        samples: Sequence[Sample],
        rows: list[list[int]],
        skipped: list[tuple[str, str]],
    ) -> None:
        super().__init__(source, rows, skipped)
        self.samples = samples
        self.where = {row: (i, j) for i, part in enumerate(rows) for j, row in enumerate(part)}

    def of_rows(self, rows: Sequence[int]) -> Tensor:
        if any(row < 0 for row in rows):
            raise IndexError("an image that can't be read has no features")
        images = []
        for row in rows:
            i, j = self.where[row]
            images.append(load_image(self.samples[i].images[j]))
        return self.source.encoder.encode(images).cpu()


def _to_array(features: Tensor, precision: Precision) -> np.ndarray:
    if precision == "bfloat16":
        return features.to(torch.bfloat16).view(torch.uint16).numpy()
    return features.float().numpy()
