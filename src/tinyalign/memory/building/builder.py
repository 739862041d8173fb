"""Building a bank: pairs in, keys and values out; batched, resumable, same input same bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState

from tinyalign.data.sample import Sample
from tinyalign.errors import BankError, ConfigError, first_few
from tinyalign.hashing import DIGITS, hash_bytes, hash_json
from tinyalign.log import logger, progress
from tinyalign.memory.bank.bank import PERCEIVER_FOLDER, MemoryBank
from tinyalign.memory.bank.lock import WriteLock, cannot_write
from tinyalign.memory.bank.manifest import MANIFEST, Manifest
from tinyalign.memory.building.make_entries import Batches, EntryMaker, FeatureRows
from tinyalign.memory.building.unfinished_builds import refuse_unfinished
from tinyalign.memory.building.writer import BankWriter, check_vacant, finish_commit
from tinyalign.memory.perceiver import Perceiver
from tinyalign.vocabulary import KeysDtype, ValuesDtype

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder

CHECKPOINT_EVERY = 1024  # samples; about what is lost to a kill


@dataclass(frozen=True)
class BuildResult:
    """A finished build."""

    bank: MemoryBank
    skipped: list[tuple[str, str]]
    """Ids of the samples left out, and why."""


@dataclass(frozen=True)
class BuildPart:
    """Which part of a build is this process's: the `index`-th of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_launch(cls) -> BuildPart:
        """As `accelerate launch` or `torchrun` has it; the whole without them.

        Raises ConfigError where the processes were started together and do not find each other.
        """
        if "RANK" not in os.environ:
            return cls()
        state, wanted = _together(), int(os.environ.get("WORLD_SIZE", 1))
        if state.num_processes != wanted:
            raise ConfigError(
                f"{wanted} processes were launched, {state.num_processes} found each other; "
                "launch them with `accelerate launch` or `torchrun`"
            )
        return cls(state.process_index, state.num_processes)

    @property
    def name(self) -> str:
        """Of the folder that it is written to; empty for the whole."""
        return "" if self.count == 1 else f"part-{self.index}-of-{self.count}"

    def rows(self, total: int, batch: int) -> range:
        """Its samples: whole batches, so that every batch is as in a build by one process."""
        batches = -(-total // batch)
        low, high = (batches * i // self.count * batch for i in (self.index, self.index + 1))
        return range(min(low, total), min(high, total))


@dataclass(frozen=True)
class RecordScan:
    """What a pass over the samples' records tells before any image is decoded."""

    hash: str
    """Hash of what a bank takes from samples."""
    repeated: frozenset[int]
    """Samples whose id came before."""


def survey(samples: Iterable[Sample]) -> RecordScan:
    """Hash of ids, texts, instructions, sources and images of samples, and who is there twice.

    Images count by their bytes where these are at hand, else by file name: a data set may move.
    """
    digest = hashlib.sha256()
    seen: set[str] = set()
    repeated: set[int] = set()
    for index, sample in enumerate(samples):
        names = [
            Path(image.name).name if image.data is None else hash_bytes(image.data)
            for image in sample.images
        ]
        record = [sample.id, sample.text, sample.instruction, sample.source, names]
        digest.update(hash_json(record).encode())
        if sample.id in seen:
            repeated.add(index)
        seen.add(sample.id)
    return RecordScan(digest.hexdigest()[:DIGITS], frozenset(repeated))


def dataset_hash(samples: Iterable[Sample]) -> str:
    """Hash of what a bank takes from samples; see `survey`."""
    return survey(samples).hash


def build_bank(
    samples: Sequence[Sample],
    vision: VisionEncoder,
    perceiver: Perceiver,
    out: str | Path,
    *,
    batch_size: int = 32,
    features: FeatureRows | None = None,
    vision_name: str = "",
    strict: bool = False,
    keys_dtype: KeysDtype = "float16",
    values_dtype: ValuesDtype = "int8",
    workers: int = 0,
    share: BuildPart | None = None,
) -> BuildResult:
    """Build a bank of `samples` in the folder `out`, or go on with a build that was killed.

    features: the encoder's output for every sample, if it is cached already; otherwise
    `vision` encodes the images in batches. vision_name: what people can load the encoder by.
    A sample without a usable image, or whose id came before, is skipped, counted and listed;
    with `strict` it stops the build. A sample with several images is remembered by its last,
    which is also the one that a model's query is made of. workers: processes that decode images.
    share: this process's part, by default as `accelerate launch` has it; the first process puts
    the parts together, and the bytes are those of a build by one process.

    Run again with the same input on a finished bank it returns that bank. Raises BankError if
    `out` holds another bank, another unfinished build (also one by another number of
    processes) or files of something else, or if nothing could be stored.
    """
    share = BuildPart.of_launch() if share is None else share
    check_vacant(out)
    found = survey(samples)
    manifest = _manifest(vision, perceiver, found.hash, vision_name, batch_size)
    manifest = replace(manifest, keys_dtype=keys_dtype, values_dtype=values_dtype)
    # Rounding may depend on the batch and on how features were cached: part of what to resume.
    fingerprint = hash_json([_identity(manifest), batch_size, features is None])
    rows = share.rows(len(samples), batch_size)
    batches = Batches(samples, rows, batch_size, found.repeated, workers, features)
    maker = EntryMaker(vision, perceiver, strict)
    if share.index:
        return _build_part(Path(out), fingerprint, manifest, share, maker, batches)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(Path(out), error) from error
    with WriteLock(out, wait=True):
        return _build(Path(out), fingerprint, manifest, share, maker, batches)


def _build(
    out: Path,
    fingerprint: str,
    manifest: Manifest,
    share: BuildPart,
    maker: EntryMaker,
    batches: Batches,
) -> BuildResult:
    """The first process's work: its own part, then all of them as one bank."""
    committed = finish_commit(out)
    _wait_for_all(share)
    if committed:
        return _already_built(MemoryBank.open(out), manifest)
    refuse_unfinished(out, share.count)
    writer = _part_writer(out, fingerprint, manifest, share)
    try:
        _write_all(batches, maker, writer)
        if share.count > 1:
            writer.close()
            _wait_for_all(share)
            writer = _joined(out, fingerprint, manifest, share)
        bank = _commit(writer, manifest, maker.perceiver, len(batches))
    finally:
        writer.close()
    _wait_for_all(share)
    skipped = writer.progress.skipped
    if skipped:
        listed = first_few(reason for _, reason in skipped)
        logger.warning("bank: %d of %d left out: %s", len(skipped), len(batches), listed)
    logger.info("bank: %d entries in %s", len(bank), out)
    return BuildResult(bank, skipped)


def _build_part(
    out: Path,
    fingerprint: str,
    manifest: Manifest,
    share: BuildPart,
    maker: EntryMaker,
    batches: Batches,
) -> BuildResult:
    """Another process's work: its own part; the first one makes the bank of them."""
    _wait_for_all(share)
    if not (out / MANIFEST).exists():
        refuse_unfinished(out, share.count)
        writer = _part_writer(out, fingerprint, manifest, share)
        try:
            _write_all(batches, maker, writer)
        finally:
            writer.close()
        _wait_for_all(share)  # for the others' parts
        _wait_for_all(share)  # for the commit
    return BuildResult(MemoryBank.open(out), [])


def _part_writer(
    out: str | Path, fingerprint: str, manifest: Manifest, share: BuildPart
) -> BankWriter:
    codings = (manifest.key_coding, manifest.value_coding)
    return BankWriter(out, fingerprint, *codings, part=share.name)


def _joined(out: Path, fingerprint: str, manifest: Manifest, share: BuildPart) -> BankWriter:
    """All finished parts, in order, in one writer."""
    whole = _part_writer(out, fingerprint, manifest, BuildPart())
    whole.restart()
    for index in range(share.count):
        part = _part_writer(out, fingerprint, manifest, BuildPart(index, share.count))
        whole.append_part(part)
        part.close()
    return whole


def _wait_for_all(share: BuildPart) -> None:
    if share.count > 1 and "RANK" in os.environ:
        _together().wait_for_everyone()


def _together() -> PartialState:
    """The processes of a launch; without a GPU they must be told to meet over the network."""
    return PartialState(cpu=not torch.cuda.is_available())


def _commit(writer: BankWriter, manifest: Manifest, perceiver: Perceiver, total: int) -> MemoryBank:
    if not writer.progress.count:
        raise BankError(
            f"{writer.folder}: none of {total} samples could be stored: "
            f"{first_few(reason for _, reason in writer.progress.skipped)}"
        )
    perceiver.save(writer.building / PERCEIVER_FOLDER)
    build = {**manifest.build, "skipped": len(writer.progress.skipped)}
    return writer.commit(replace(manifest, build=build))


def _write_all(batches: Batches, maker: EntryMaker, writer: BankWriter) -> None:
    first, total = writer.progress.position, len(batches.rows)
    every = max(1, CHECKPOINT_EVERY // batches.size)
    if first:
        logger.info("bank: going on at sample %d of %d", first, total)
    with progress("Building the memory bank", total) as advance:
        advance(first)
        done = first
        for number, batch in enumerate(batches.starting_at(first), start=first // batches.size + 1):
            maker.store(batch, writer)
            done = min(done + batches.size, total)
            if done == total or number % every == 0:
                writer.checkpoint(done)
            advance(len(batch))


def _manifest(
    vision: VisionEncoder,
    perceiver: Perceiver,
    samples_hash: str,
    vision_name: str,
    batch_size: int,
) -> Manifest:
    latents, width = perceiver.value_shape
    key_function = perceiver.key_function
    return Manifest(
        vision_name=vision_name,
        vision_hash=vision.hash,
        compressor_hash=perceiver.hash,
        key_hash=key_function.hash,
        key_kind=key_function.kind,
        alpha=key_function.alpha,
        key_dim=key_function.dim,
        n_latents=latents,
        d_latents=width,
        dataset_hash=samples_hash,
        build={"batch_size": batch_size},
    )


# Fields of a manifest that decide a bank's content, up to rounding; and what people call them.
IDENTITY = {
    "vision_hash": "vision encoder",
    "compressor_hash": "Perceiver",
    "key_hash": "key function",
    "dataset_hash": "data",
    "keys_dtype": "type of keys",
    "values_dtype": "type of values",
}


def _identity(manifest: Manifest) -> list[object]:
    return [getattr(manifest, name) for name in IDENTITY]


def _already_built(bank: MemoryBank, wanted: Manifest) -> BuildResult:
    pairs = zip(IDENTITY.values(), _identity(bank.manifest), _identity(wanted))
    if differ := [f"{what} {a}, this build {b}" for what, a, b in pairs if a != b]:
        raise BankError(
            f"{bank.folder}: holds another bank already ({'; '.join(differ)}); choose another "
            "folder, or remove it"
        )
    changes = bank.manifest.commit - 1
    since = f", {changes} commits since" if changes else ""
    logger.info("bank: %s is built already, %d entries%s", bank.folder, len(bank), since)
    return BuildResult(bank, [])
