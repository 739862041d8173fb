"""What people do to a bank after it was built: add, update and remove pairs, and merge banks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tinyalign.data.sample import Sample
from tinyalign.errors import BankError, ConfigError, first_few
from tinyalign.hashing import hash_json
from tinyalign.log import logger, progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.bank.lock import LOCK, WriteLock, cannot_write
from tinyalign.memory.bank.manifest import Manifest
from tinyalign.memory.building.builder import survey
from tinyalign.memory.building.editor import BankEditor
from tinyalign.memory.building.make_entries import Batches, EntryMaker, FeatureRows
from tinyalign.memory.building.unfinished_builds import refuse_unfinished
from tinyalign.memory.building.writer import BankWriter, check_vacant, finish_commit
from tinyalign.memory.perceiver import load_perceiver
from tinyalign.memory.search.retriever import check_encoder

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder

COPY_ROWS = 4096  # rows copied at a time


@dataclass(frozen=True)
class Change:
    """What a change did."""

    bank: MemoryBank
    """The bank as it is now."""
    added: int = 0
    removed: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    """Ids of the samples left out, and why."""


# -- adding and updating -----------------------------------------------------------------------


def add_samples(
    folder: str | Path,
    samples: Sequence[Sample],
    vision: VisionEncoder,
    *,
    update: bool = False,
    batch_size: int = 32,
    features: FeatureRows | None = None,
    workers: int = 0,
    strict: bool = False,
) -> Change:
    """Remember more pairs, in one commit; with the bank's own Perceiver and key function.

    update: a sample whose id is in the bank replaces that entry, once it could be made; without
    it such a sample is left out. features, workers, strict: as in `build_bank`. Readers see the
    new entries when they open the bank or `refresh`. Raises BankError for another vision encoder
    than the bank's, if another process is writing, and if nothing could be stored; the bank then
    stays as it is.
    """
    with BankEditor(folder) as editor:
        check_encoder(editor.bank, vision.hash)
        perceiver = load_perceiver(editor.bank).to(vision.device)
        maker = EntryMaker(vision, perceiver, strict)
        there = _rows_there(editor.bank, {sample.id for sample in samples})
        refused = {i: one.id for i, one in enumerate(samples) if one.id in there and not update}
        batches = Batches(
            samples, range(len(samples)), batch_size, survey(samples).repeated, workers, features,
            there=refused,
        )  # fmt: skip
        sink = _Replacing(editor, there)
        with progress("Adding memories", len(samples)) as advance:
            for batch in batches.starting_at(0):
                maker.store(batch, sink)
                advance(len(batch))
        added, skipped = len(editor.added), tuple(editor.skipped)
        if not added:
            raise BankError(
                f"{folder}: none of {len(samples)} samples could be added: "
                f"{first_few(reason for _, reason in skipped) or 'there are none'}"
            )
        bank = editor.commit("update" if update else "add")
    if skipped:
        listed = first_few(reason for _, reason in skipped)
        logger.warning("bank: %d of %d left out: %s", len(skipped), len(samples), listed)
    return Change(bank, added, sink.removed, skipped)


class _Replacing:
    """Hands entries to an editor; what the bank has under the same id goes in the same commit."""

    def __init__(self, editor: BankEditor, there: Mapping[str, list[int]]) -> None:
        self.editor, self.there, self.removed = editor, there, 0

    def append(self, keys: Tensor, values: Tensor, entries: Sequence[Entry]) -> None:
        """See `BankEditor.append`."""
        old = [row for entry in entries for row in self.there.get(entry.id, ())]
        self.removed += self.editor.remove(old)
        self.editor.append(keys, values, entries)

    def skip(self, sample_id: str, reason: str) -> None:
        """See `BankEditor.skip`."""
        self.editor.skip(sample_id, reason)


def _rows_there(bank: MemoryBank, ids: Iterable[str]) -> dict[str, list[int]]:
    """Those of the ids that the bank has, and their rows."""
    rows = np.setdiff1d(np.asarray(bank.entries.rows_with("id", ids), np.int64), bank.removed)
    found: dict[str, list[int]] = {}
    for row, entry in bank.entries.at(rows.tolist()).items():
        found.setdefault(entry.id, []).append(row)
    return found


# -- removing ----------------------------------------------------------------------------------


def find_rows(bank: MemoryBank, ids: Iterable[str] = (), sources: Iterable[str] = ()) -> list[int]:
    """Rows in the bank of entries with these ids, or from these data sets, sorted.

    Raises BankError naming the ids and data sets that it does not have.
    """
    names, sources = sorted(set(ids)), sorted(set(sources))
    there = _rows_there(bank, names)
    if missing := [name for name in names if name not in there]:
        raise BankError(f"{bank.folder}: no entry with the id {first_few(missing)}")
    rows = [row for one in there.values() for row in one]
    if sources:
        known = bank.entries.source_counts(bank.removed)
        if unknown := [name for name in sources if name not in known]:
            raise BankError(
                f"{bank.folder}: no entry came from {first_few(unknown)}; its sources are "
                f"{first_few(known) or 'none'}"
            )
        rows += bank.rows_from(sources).tolist()
    return sorted(set(rows))


def remove_entries(
    folder: str | Path,
    *,
    ids: Iterable[str] = (),
    sources: Iterable[str] = (),
    rows: Iterable[int] = (),
) -> Change:
    """Forget entries by id, by data set, or by row (as a search gives it), in one commit.

    They are gone from the next search of every reader at once; `compact` frees their room.
    Raises BankError for an id, source or row that is not there, and removes nothing then.
    """
    with BankEditor(folder) as editor:
        count = editor.remove([*find_rows(editor.bank, ids, sources), *rows])
        bank = editor.commit("remove")
    return Change(bank, removed=count)


# -- merging -----------------------------------------------------------------------------------


def merge_banks(folders: Sequence[str | Path], out: str | Path, *, keep: str = "error") -> Change:
    """One new bank of the entries of several, which must share encoder, Perceiver and keys.

    Keys and values are copied as they are coded. keep: "error" refuses an id that two banks
    have, "first" takes it from the first of them. Raises BankError naming what differs, or what is
    damaged in any of them.
    """
    if keep not in ("error", "first"):
        raise ConfigError(f"keep is {keep!r}; expected error or first")
    banks = [MemoryBank.open(folder) for folder in folders]
    if not banks:
        raise ConfigError("no banks to merge were given")
    for bank in banks[1:]:
        _check_alike(banks[0], bank)
    for bank in banks:
        bank.verify()  # new hashes would hide the damage for good
    hashes = [bank.hash for bank in banks]
    manifest = replace(
        banks[0].manifest, dataset_hash=hash_json(hashes), build={"merged": hashes}, segments=(),
        compressor={}, generation=1, commit=1, removed=0,
    )  # fmt: skip
    skipped: list[tuple[str, str]] = []
    with new_bank(out, hash_json([hashes, keep]), manifest) as writer:
        with progress("Merging", sum(len(bank) for bank in banks)) as advance:
            for bank in banks:
                skipped += _copy(bank, writer, keep, advance)
        if not writer.progress.count:
            raise BankError(f"{banks[0].folder}: no entries in any of the banks to merge")
        writer.copy_perceiver(banks[0].manifest.perceiver_files, banks[0].folder)
        merged = writer.commit(manifest)
    return Change(merged, len(merged), 0, tuple(skipped))


@contextmanager
def new_bank(out: str | Path, fingerprint: str, manifest: Manifest) -> Iterator[BankWriter]:
    """A writer for a bank that is made in one go; on failure nothing of it stays behind.

    fingerprint: hash of what decides its bytes. manifest: says how keys and values are coded.
    Raises BankError for a folder that has a bank, an unfinished build of another kind, or files of
    something else.
    """
    folder = Path(out)
    check_vacant(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with WriteLock(folder):
            if finish_commit(folder):
                raise BankError(f"{folder}: holds a bank already; choose another folder")
            refuse_unfinished(folder)
            yield from _fresh_writer(folder, fingerprint, manifest)
    except BaseException:
        if made:
            with suppress(OSError):  # something else is in it by now
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise


def _fresh_writer(folder: Path, fingerprint: str, manifest: Manifest) -> Iterator[BankWriter]:
    writer = BankWriter(folder, fingerprint, manifest.key_coding, manifest.value_coding)
    writer.restart()
    try:
        yield writer
    except BaseException:
        writer.close()
        shutil.rmtree(writer.building, ignore_errors=True)
        raise
    writer.close()


def _copy(
    bank: MemoryBank, writer: BankWriter, keep: str, advance: Callable[[int], None]
) -> list[tuple[str, str]]:
    skipped = []
    live = bank.live
    for start in range(0, len(live), COPY_ROWS):
        rows = live[start : start + COPY_ROWS]
        entries = bank.entries.at(rows.tolist())
        twice = [row for row in rows.tolist() if entries[row].id in writer.ids]
        if twice and keep == "error":
            raise BankError(
                f"{bank.folder}: id {entries[twice[0]].id!r} is in an earlier bank too; "
                'keep the first of each with keep="first" (--keep first)'
            )
        skipped += [(entries[row].id, "in an earlier bank") for row in twice]
        rows = np.setdiff1d(rows, twice)
        writer.append_coded(
            bank.keys[rows], bank.records[rows], [entries[row] for row in rows.tolist()]
        )
        advance(len(rows) + len(twice))
    writer.progress.coding += bank.coding_error
    return skipped


def _check_alike(first: MemoryBank, other: MemoryBank) -> None:
    for name, what in (
        ("vision_hash", "vision encoders"),
        ("compressor_hash", "Perceivers"),
        ("key_hash", "key functions"),
        ("keys_dtype", "types of keys"),
        ("values_dtype", "types of values"),
    ):
        a, b = getattr(first.manifest, name), getattr(other.manifest, name)
        if a != b:
            raise BankError(
                f"{other.folder}: {what} differ: {b} here, {a} in {first.folder}; only banks "
                "made by the same models can be merged"
            )
