"""The feature cache: frozen vision features, computed once an image and memory-mapped since.

A folder a vision encoder and precision: `features.bin` holds rows (n, D) one after the other,
`index.sqlite` knows each row by the hash of the decoded image, and by what the image was read
from, so that a second run decodes nothing. Features are flushed before the index names them: a
kill loses at most the batch in the making, and two runs may fill one cache at the same time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import ConfigError, DataError
from tinyalign.hashing import hash_bytes
from tinyalign.log import logger, progress

if TYPE_CHECKING:
    from tinyalign.model.vision import VisionEncoder

Precision = Literal["bfloat16", "float32"]
STORED = {"bfloat16": (np.uint16, torch.bfloat16), "float32": (np.float32, torch.float32)}
SCHEMA = """
CREATE TABLE IF NOT EXISTS images (row INTEGER PRIMARY KEY, image_hash TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS refs (ref TEXT PRIMARY KEY, row INTEGER NOT NULL);
"""


def default_cache_folder() -> Path:
    """$TINYALIGN_CACHE, or ~/.cache/tinyalign."""
    return Path(os.environ.get("TINYALIGN_CACHE", "~/.cache/tinyalign")).expanduser()


class FeatureCache:
    """Features of one encoder in `folder`/features-HASH-PRECISION."""

    def __init__(
        self, folder: str | Path, encoder: VisionEncoder, precision: Precision = "bfloat16"
    ) -> None:
        """Nothing is read or written until `cover` is called.

        Raises ConfigError for a precision that is neither "bfloat16" nor "float32".
        """
        if precision not in STORED:
            raise ConfigError(f"cache precision: expected one of {list(STORED)}, found {precision}")
        self.encoder = encoder
        self.precision: Precision = precision
        self.folder = Path(folder) / f"features-{encoder.hash}-{precision}"

    @property
    def row_shape(self) -> tuple[int, int]:
        """(n, D) of one image."""
        return self.encoder.dims

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        n_tokens, width = self.row_shape
        return n_tokens * width * np.dtype(STORED[self.precision][0]).itemsize

    def cover(
        self, samples: Sequence[Sample], *, batch_size: int = 32, strict: bool = False
    ) -> CachedFeatures:
        """Features of every image of `samples`; those not in the cache are computed first.

        Prints the size before it computes. A sample with an image that can't be read is listed
        in `skipped` and warned of; with `strict` it raises DataError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        refs = [[_reference(image) for image in sample.images] for sample in samples]
        known = self._known(ref for row in refs for ref in row)
        missing: dict[str, tuple[int, int]] = {}
        for i, row in enumerate(refs):
            for j, ref in enumerate(row):
                if ref not in known and ref not in missing:
                    missing[ref] = (i, j)
        skipped = self._compute(samples, missing, batch_size, strict)
        known.update(self._known(missing))
        rows = [[known.get(ref, -1) for ref in row] for row in refs]
        bad = [
            (samples[i].id, skipped[next(r for r in refs[i] if r in skipped)])
            for i, row in enumerate(rows)
            if -1 in row
        ]
        if bad:
            shown = "; ".join(reason for _, reason in bad[:5])
            logger.warning("features: %d of %d samples unusable: %s", len(bad), len(samples), shown)
        return CachedFeatures(self, rows, bad)

    def _compute(
        self,
        samples: Sequence[Sample],
        missing: dict[str, tuple[int, int]],
        batch_size: int,
        strict: bool,
    ) -> dict[str, str]:
        """Decode, encode and store what is missing; returns ref → reason of what failed."""
        skipped: dict[str, str] = {}
        if not missing:
            return skipped
        size = len(missing) * self.row_bytes / 1e6
        logger.info("features: %d images, %.0f MB, into %s", len(missing), size, self.folder)
        todo = list(missing.items())
        with progress("Caching vision features", len(todo)) as advance:
            for start in range(0, len(todo), batch_size):
                refs: list[str] = []
                images: list[Image.Image] = []
                for ref, (i, j) in todo[start : start + batch_size]:
                    try:
                        images.append(load_image(samples[i].images[j]))
                        refs.append(ref)
                    except DataError as error:
                        if strict:
                            raise
                        skipped[ref] = f"sample {samples[i].id}: {error}"
                if refs:
                    self._store(refs, images)
                advance(len(todo[start : start + batch_size]))
        return skipped

    def _store(self, refs: list[str], images: list[Image.Image]) -> None:
        hashes = [pixel_hash(image) for image in images]
        with self._index() as index:
            known = dict(_select(index, "SELECT image_hash, row FROM images", "image_hash", hashes))
        first = {h: i for i, h in reversed(list(enumerate(hashes))) if h not in known}
        new = sorted(first.values())
        block = np.empty((0,), np.uint8)
        if new:
            features = self.encoder.encode([images[i] for i in new]).cpu()
            block = _to_array(features, self.precision)
        with self._index(write=True) as index:
            # The write lock is held from here on: nobody else appends in between.
            count = index.execute("SELECT count(*) FROM images").fetchone()[0]
            taken = dict(_select(index, "SELECT image_hash, row FROM images", "image_hash", hashes))
            fresh = [i for i, at in enumerate(new) if hashes[at] not in taken]
            self._append(count, block[fresh] if fresh else block[:0])
            for offset, i in enumerate(fresh):
                taken[hashes[new[i]]] = count + offset
                index.execute("INSERT INTO images VALUES (?, ?)", (count + offset, hashes[new[i]]))
            index.executemany(
                "INSERT OR IGNORE INTO refs VALUES (?, ?)",
                [(ref, taken[h]) for ref, h in zip(refs, hashes)],
            )

    def _append(self, count: int, block: np.ndarray) -> None:
        path = self.folder / "features.bin"
        path.touch()
        with open(path, "r+b") as file:
            file.seek(count * self.row_bytes)  # what a kill left beyond is written over
            file.write(block.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _known(self, refs: Iterator[str] | dict[str, tuple[int, int]]) -> dict[str, int]:
        with self._index() as index:
            wanted = list(dict.fromkeys(refs))
            return dict(_select(index, "SELECT ref, row FROM refs", "ref", wanted))

    def hashes(self, rows: Sequence[int]) -> list[str]:
        """Hash of the decoded image of each row; "" for row -1."""
        with self._index() as index:
            by_row = dict(index.execute("SELECT row, image_hash FROM images").fetchall())
        return [by_row.get(row, "") for row in rows]

    def map(self) -> np.ndarray:
        """All rows (N, n, D), read-only, in the stored type."""
        path = self.folder / "features.bin"
        stored = STORED[self.precision][0]
        count = path.stat().st_size // self.row_bytes if path.is_file() else 0
        if not count:
            return np.empty((0, *self.row_shape), stored)
        return np.memmap(path, stored, mode="r", shape=(count, *self.row_shape))

    @contextmanager
    def _index(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(
            self.folder / "index.sqlite", timeout=600, isolation_level=None
        )
        try:
            connection.executescript(SCHEMA)
            if write:
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            if write:
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.folder}: a damaged feature cache ({error}); remove the folder, it will be "
                "computed again"
            ) from error
        finally:
            connection.close()


@dataclass
class CachedFeatures:
    """The features of a list of samples: item i is (n, D) float32 of sample i's first image."""

    cache: FeatureCache
    rows: list[list[int]]
    """Rows of each sample's images; -1 for an image that can't be read."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Ids of samples with such an image, and why."""
    _map: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict:
        return {**vars(self), "_map": None}  # workers map the file themselves

    def __getitem__(self, index: int) -> Tensor:
        return self.of_rows(self.rows[index][:1])[0]

    def images(self, index: int) -> Tensor:
        """(images, n, D) in the stored precision: all images of sample `index`."""
        return self.of_rows(self.rows[index], convert=False)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, n, D) float32: the first image of each sample."""
        return self.of_rows([self.rows[i][0] for i in indices])

    def of_rows(self, rows: Sequence[int], convert: bool = True) -> Tensor:
        """(len(rows), n, D), float32 or as stored. IndexError for an unreadable image."""
        if any(row < 0 for row in rows):
            raise IndexError("an image that can't be read has no features")
        if self._map is None:
            self._map = self.cache.map()
        stored = torch.from_numpy(self._map[list(rows)])  # fancy indexing copies
        stored = stored.view(STORED[self.cache.precision][1])
        return stored.float() if convert else stored

    def usable(self) -> list[int]:
        """Indices of the samples all of whose images have features."""
        return [i for i, row in enumerate(self.rows) if -1 not in row]

    def image_hashes(self) -> list[str]:
        """Hash of each sample's first image; "" without one."""
        return self.cache.hashes([row[0] if row else -1 for row in self.rows])

    def take(self, indices: Sequence[int]) -> CachedFeatures:
        """The features of some of the samples."""
        return CachedFeatures(self.cache, [self.rows[i] for i in indices])


def _to_array(features: Tensor, precision: Precision) -> np.ndarray:
    if precision == "bfloat16":
        return features.to(torch.bfloat16).view(torch.uint16).numpy()
    return features.float().numpy()


def _reference(image: ImageRef) -> str:
    """What an image is known by before it is decoded: its bytes, or its file's path and times."""
    if image.data is not None:
        return hash_bytes(image.data)
    path = Path(image.name)
    try:
        facts = path.stat()
    except OSError:
        return f"missing|{path.resolve()}"
    return f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"


def _select(index: sqlite3.Connection, sql: str, column: str, values: Sequence[str]) -> list[tuple]:
    found: list[tuple] = []
    for start in range(0, len(values), 500):
        part = values[start : start + 500]
        marks = ", ".join("?" * len(part))
        found += index.execute(f"{sql} WHERE {column} IN ({marks})", part).fetchall()
    return found
