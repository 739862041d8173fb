"""Building a bank: pairs in, keys and values out; batched, resumable, same input same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.sample import Sample
from tinyalign.errors import BankError, DataError, first_few
from tinyalign.hashing import DIGITS, hash_bytes, hash_json
from tinyalign.log import logger, progress
from tinyalign.memory.bank import COMPRESSOR, MemoryBank
from tinyalign.memory.compressor import Compressor
from tinyalign.memory.entries import Entry
from tinyalign.memory.manifest import Manifest
from tinyalign.memory.writer import BankWriter, finish_commit

if TYPE_CHECKING:
    from tinyalign.model.vision import VisionEncoder

CHECKPOINT_EVERY = 1024  # samples; about what is lost to a kill


class FeatureRows(Protocol):
    """Features computed already: `features[i]` is (n, D) of sample i."""

    def __getitem__(self, index: int, /) -> Any:
        """Features (n, D) of sample `index`, as a tensor or an array."""


@dataclass(frozen=True)
class BuildResult:
    """A finished build."""

    bank: MemoryBank
    skipped: list[tuple[str, str]]
    """Ids of the samples left out, and why."""


@dataclass
class _Prepared:
    """A sample with its decoded image, ready for the encoder."""

    index: int
    sample: Sample
    image: Image.Image
    image_hash: str


def dataset_hash(samples: Iterable[Sample]) -> str:
    """Hash of what a bank takes from samples: ids, texts, instructions, sources, images.

    Images count by their bytes where these are at hand, else by file name: a data set may move.
    """
    digest = hashlib.sha256()
    for sample in samples:
        names = [
            Path(image.name).name if image.data is None else hash_bytes(image.data)
            for image in sample.images
        ]
        record = [sample.id, sample.text, sample.instruction, sample.source, names]
        digest.update(hash_json(record).encode())
    return digest.hexdigest()[:DIGITS]


def build_bank(
    samples: Sequence[Sample],
    vision: VisionEncoder,
    compressor: Compressor,
    out: str | Path,
    *,
    batch_size: int = 32,
    features: FeatureRows | None = None,
    vision_name: str = "",
    strict: bool = False,
) -> BuildResult:
    """Build a bank of `samples` in the folder `out`, or go on with a build that was killed.

    features: the encoder's output for every sample, if it is cached already; otherwise
    `vision` encodes the images in batches. vision_name: what people can load the encoder by.
    A sample without a usable image, or whose id came before, is skipped, counted and listed;
    with `strict` it stops the build. A sample with several images is remembered by its last,
    which is also the one that a model's query is made of.

    Run again with the same input on a finished bank it returns that bank. Raises BankError if
    `out` holds another bank or another unfinished build, or if nothing could be stored.
    """
    samples_hash = dataset_hash(samples)
    manifest = _manifest(vision, compressor, samples_hash, vision_name, batch_size)
    if finish_commit(out):
        return _already_built(MemoryBank.open(out), manifest)
    # Rounding may depend on the batch and on how features were cached: part of what to resume.
    writer = BankWriter(out, hash_json([_identity(manifest), batch_size, features is None]))
    try:
        _write_all(samples, vision, compressor, writer, batch_size, features, strict)
        if not writer.progress.count:
            raise BankError(
                f"{out}: none of {len(samples)} samples could be stored: "
                f"{first_few(reason for _, reason in writer.progress.skipped)}"
            )
        compressor.save(writer.building / COMPRESSOR)
        skipped = writer.progress.skipped
        build = {**manifest.build, "skipped": len(skipped)}
        bank = writer.commit(replace(manifest, build=build))
    finally:
        writer.close()
    if skipped:
        listed = first_few(reason for _, reason in skipped)
        logger.warning("bank: %d of %d samples left out: %s", len(skipped), len(samples), listed)
    logger.info("bank: %d entries in %s", len(bank), out)
    return BuildResult(bank, skipped)


def _write_all(
    samples: Sequence[Sample],
    vision: VisionEncoder,
    compressor: Compressor,
    writer: BankWriter,
    batch_size: int,
    features: FeatureRows | None,
    strict: bool,
) -> None:
    start, total = writer.progress.position, len(samples)
    every = max(1, CHECKPOINT_EVERY // batch_size) * batch_size
    if start:
        logger.info("bank: going on at sample %d of %d", start, total)
    with progress("Building the memory bank", total) as advance:
        advance(start)
        for low in range(start, total, batch_size):
            high = min(low + batch_size, total)
            batch = list(_prepared(samples, range(low, high), writer, strict))
            if batch:
                _store(batch, vision, compressor, writer, features, strict)
            if high == total or high % every == 0:
                writer.checkpoint(high)
            advance(high - low)


def _prepared(
    samples: Sequence[Sample], indices: range, writer: BankWriter, strict: bool
) -> Iterator[_Prepared]:
    """The usable samples among `indices`, images decoded; the others go on the writer's list."""
    batch_ids: set[str] = set()
    for index in indices:
        sample = samples[index]
        try:
            if sample.id in writer.ids or sample.id in batch_ids:
                raise DataError(f"sample {sample.id}: its id came before; ids must be unique")
            if not sample.images:
                raise DataError(f"sample {sample.id}: no image; a memory is an image and a text")
            image = load_image(sample.images[-1])
        except DataError as error:
            if strict:
                raise
            writer.skip(sample.id, str(error))
            continue
        batch_ids.add(sample.id)
        yield _Prepared(index, sample, image, pixel_hash(image))


def _store(
    batch: list[_Prepared],
    vision: VisionEncoder,
    compressor: Compressor,
    writer: BankWriter,
    features: FeatureRows | None,
    strict: bool,
) -> None:
    images = [one.image for one in batch]
    if features is None:
        encoded: Tensor = vision.encode(images)
    else:
        encoded = torch.stack([torch.as_tensor(features[one.index]).float() for one in batch])
    texts = [one.sample.text for one in batch]
    keys = compressor.entry_keys(encoded, [one.sample.instruction for one in batch], texts).cpu()
    values = compressor.values(encoded, texts, images).cpu()
    good = keys.isfinite().all(dim=1) & values.half().isfinite().flatten(1).all(dim=1)
    for one, fine in zip(batch, good.tolist()):
        if not fine:
            reason = f"sample {one.sample.id}: its features or latents overflow; check its image"
            if strict:
                raise BankError(reason)
            writer.skip(one.sample.id, reason)
    kept = [_entry(one) for one, fine in zip(batch, good.tolist()) if fine]
    writer.append(keys[good], values[good], kept)


def _entry(one: _Prepared) -> Entry:
    sample = one.sample
    return Entry(
        id=sample.id,
        text=sample.text,
        image_ref=sample.images[-1].path or "",
        image_hash=one.image_hash,
        source=sample.source,
        instruction=sample.instruction,
    )


def _manifest(
    vision: VisionEncoder,
    compressor: Compressor,
    samples_hash: str,
    vision_name: str,
    batch_size: int,
) -> Manifest:
    latents, width = compressor.value_shape
    key_function = compressor.key_function
    return Manifest(
        vision_name=vision_name,
        vision_hash=vision.hash,
        compressor_hash=compressor.hash,
        key_hash=key_function.hash,
        key_kind=key_function.kind,
        alpha=key_function.alpha,
        key_dim=key_function.dim,
        n_latents=latents,
        d_latents=width,
        count=0,
        dataset_hash=samples_hash,
        build={"batch_size": batch_size},
    )


def _identity(manifest: Manifest) -> list[object]:
    """What decides a bank's content, up to rounding."""
    m = manifest
    return [m.vision_hash, m.compressor_hash, m.key_hash, m.dataset_hash]


def _already_built(bank: MemoryBank, wanted: Manifest) -> BuildResult:
    if _identity(bank.manifest) != _identity(wanted):
        raise BankError(
            f"{bank.folder}: holds a bank of other data or other models (dataset "
            f"{bank.manifest.dataset_hash}, this build {wanted.dataset_hash}); choose another "
            "folder, or remove it"
        )
    logger.info("bank: %s is built already, %d entries", bank.folder, len(bank))
    return BuildResult(bank, [])
