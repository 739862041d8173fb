"""Token ids and labels of a data set, made once and memory-mapped.

A cache is a folder `tokens/HASH`, named by the samples' texts and all that decides their ids. A
run of image or memory placeholders is kept as one id and unfolded when it is read: of a caption's
760 tokens with SigLIP, 729 are the same. The folder appears by a rename when it is complete; until
then it grows beside its place, so that a build that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tinyalign.data.chat import Encoded
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError
from tinyalign.hashing import DIGITS, hash_file, hash_json
from tinyalign.log import logger, progress
from tinyalign.memory.bank.files import sync_file, sync_folder, write_atomically
from tinyalign.training.caches.tokenise import Tokeniser

FORMAT = 2
IDS, LABELS, COUNTS, REASONS = "ids.bin", "labels.bin", "counts.bin", "reasons.jsonl"
FILES = (IDS, LABELS, COUNTS, REASONS)
MANIFEST, PROGRESS = "manifest.json", "progress.json"
BLOCK = 2048


@dataclass(frozen=True)
class Folding:
    """Runs of placeholders as one id each, and back."""

    image_id: int
    memory_id: int
    n_image: int
    n_memory: int

    def fold(self, ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(kept ids, kept labels) of whole ones (L,): the first of every placeholder run."""
        keep = np.ones(len(ids), bool)
        for token, times in ((self.image_id, self.n_image), (self.memory_id, self.n_memory)):
            places = np.flatnonzero(ids == token)
            keep[places] = np.arange(len(places)) % max(1, times) == 0
        return ids[keep], labels[keep]

    def unfold(self, ids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The whole ids and labels (L,) of what `fold` kept."""
        times = np.ones(len(ids), np.int64)
        times[ids == self.image_id] = self.n_image
        times[ids == self.memory_id] = self.n_memory
        return np.repeat(ids, times), np.repeat(labels, times)


def texts_hash(samples: Sequence[Sample]) -> str:
    """Hash of what token ids take from samples: id, number of images, and turns."""
    digest = hashlib.sha256()
    for sample in samples:
        turns = [[message.role, message.text] for message in sample.messages]
        line = json.dumps([sample.id, len(sample.images), turns], ensure_ascii=False)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:DIGITS]


class CachedTokens:
    """Item i: the ids and labels of sample i. Read from the memory map of a finished cache."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError if the cache is damaged."""
        self.folder = folder
        manifest = _checked(folder)
        self.folding = Folding(**manifest["folding"])
        counts = np.fromfile(folder / COUNTS, np.int32).reshape(-1, 2)
        self.starts = np.concatenate([[0], np.cumsum(counts[:, 0], dtype=np.int64)])
        self.lengths = counts[:, 1].astype(np.int64)
        """Tokens of each sample (N,), placeholders counted; 0 for one that cannot be used."""
        lines = (folder / REASONS).read_text(encoding="utf-8").splitlines()
        self.reasons: dict[int, str] = dict(json.loads(line) for line in lines)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Encoded:
        """Raises DataError, with the reason, for a sample that cannot be used."""
        if index in self.reasons:
            raise DataError(self.reasons[index])
        part = slice(self.starts[index], self.starts[index + 1])
        ids, labels = self.folding.unfold(self._ids[part], self._labels[part])
        return Encoded(ids.tolist(), labels.tolist())

    @cached_property
    def _ids(self) -> np.ndarray:
        return _map(self.folder / IDS)

    @cached_property
    def _labels(self) -> np.ndarray:
        return _map(self.folder / LABELS)

    def __getstate__(self) -> dict[str, Any]:
        maps = ("_ids", "_labels")  # workers map the files themselves
        return {name: value for name, value in vars(self).items() if name not in maps}


def cached_tokens(folder: Path, samples: Sequence[Sample], tokeniser: Tokeniser) -> CachedTokens:
    """The tokens of `samples` from `folder`/tokens; made first where they are not there.

    Several processes may ask at once: one makes them, the others wait. A damaged cache is made
    anew, with a warning.
    """
    name = hash_json([FORMAT, tokeniser.hash, texts_hash(samples)])
    place = folder / "tokens" / name
    if (found := _opened(place)) is not None:
        return found
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f"{name}.lock")):
        found = _opened(place, warn=True)  # another process may have made it meanwhile
        if found is None:
            _make(place, samples, tokeniser)
            found = CachedTokens(place)
    return found


def _opened(place: Path, warn: bool = False) -> CachedTokens | None:
    if not place.is_dir():
        return None
    try:
        return CachedTokens(place)
    except DataError as error:
        if warn:
            logger.warning("tokens: %s; made again", error)
        return None


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest of a cache whose files are what it says. DataError otherwise."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in FILES:
            if hash_file(folder / name) != manifest["files"][name]:
                raise DataError(f"{folder / name}: damaged, its content is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: damaged token cache ({error})") from error
    return manifest


def _map(path: Path) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, np.int32)
    return np.memmap(path, np.int32, mode="r")


def _make(place: Path, samples: Sequence[Sample], tokeniser: Tokeniser) -> None:
    """Write the cache beside its place, block by block, and rename it there."""
    aside = place.with_name(f"{place.name}.partial")
    aside.mkdir(exist_ok=True)
    folding = Folding(
        tokeniser.image_token_id,
        tokeniser.memory_token_id,
        tokeniser.n_image_tokens,
        tokeniser.n_memory_tokens,
    )
    done = _resume(aside)
    with progress("Tokenising", len(samples)) as advance:
        advance(done)
        for start in range(done, len(samples), BLOCK):
            block = range(start, min(start + BLOCK, len(samples)))
            _append(aside, _encoded(samples, block, tokeniser, folding), block.stop)
            advance(len(block))
    manifest = {
        "folding": vars(folding),
        "samples": len(samples),
        "files": {name: hash_file(aside / name) for name in FILES},
    }
    write_atomically(aside / MANIFEST, json.dumps(manifest, indent=2).encode())
    shutil.rmtree(place, ignore_errors=True)  # only a damaged one can be there
    os.replace(aside, place)
    sync_folder(place.parent)
    (place / PROGRESS).unlink(missing_ok=True)
    size = sum((place / name).stat().st_size for name in FILES)
    logger.info("tokens: of %d samples, %.1f MB, into %s", len(samples), size / 1e6, place)


def _encoded(
    samples: Sequence[Sample], block: range, tokeniser: Tokeniser, folding: Folding
) -> dict[str, bytes]:
    """What each file gets for a block of samples."""
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    counts: list[tuple[int, int]] = []
    reasons: list[str] = []
    for index in block:
        try:
            whole = tokeniser(samples[index])
        except DataError as error:
            reasons.append(json.dumps([index, str(error)]) + "\n")
            counts.append((0, 0))
            continue
        kept = folding.fold(np.array(whole.input_ids), np.array(whole.labels))
        ids.append(kept[0])
        labels.append(kept[1])
        counts.append((len(kept[0]), len(whole.input_ids)))
    return {
        IDS: b"".join(row.astype(np.int32).tobytes() for row in ids),
        LABELS: b"".join(row.astype(np.int32).tobytes() for row in labels),
        COUNTS: np.array(counts, np.int32).tobytes(),
        REASONS: "".join(reasons).encode(),
    }


def _append(aside: Path, content: dict[str, bytes], samples: int) -> None:
    """Add a block to the files; it counts once progress.json says so."""
    for name, data in content.items():
        with open(aside / name, "ab") as file:
            file.write(data)
        sync_file(aside / name)
    sizes = {name: (aside / name).stat().st_size for name in FILES}
    write_atomically(aside / PROGRESS, json.dumps([samples, sizes]).encode())


def _resume(aside: Path) -> int:
    """Samples that are in the files already; what a kill left beyond them is cut off."""
    try:
        samples, sizes = json.loads((aside / PROGRESS).read_text(encoding="utf-8"))
        if any((aside / name).stat().st_size < sizes[name] for name in FILES):
            samples, sizes = 0, {}
    except (OSError, ValueError, KeyError, TypeError):
        samples, sizes = 0, {}
    for name in FILES:
        with open(aside / name, "ab") as file:
            file.truncate(sizes.get(name, 0))
    return samples
