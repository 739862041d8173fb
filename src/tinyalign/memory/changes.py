"""What people do to a bank after it was built: add, update and remove pairs, and merge banks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyalign.data.sample import Sample
from tinyalign.errors import BankError, first_few
from tinyalign.hashing import hash_json
from tinyalign.log import logger, progress
from tinyalign.memory.bank import COMPRESSOR, MemoryBank
from tinyalign.memory.builder import survey
from tinyalign.memory.compressor import Compressor
from tinyalign.memory.editor import BankEditor
from tinyalign.memory.lock import WriteLock
from tinyalign.memory.maker import Batches, FeatureRows, Maker
from tinyalign.memory.retriever import check_encoder
from tinyalign.memory.writer import BankWriter, finish_commit

if TYPE_CHECKING:
    from tinyalign.model.vision import VisionEncoder

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

    update: a sample whose id is in the bank replaces that entry; otherwise it is left out.
    features, workers, strict: as in `build_bank`. Readers see the new entries when they open the
    bank or `refresh`. Raises BankError for another vision encoder than the bank's, if another
    process is writing, and if nothing could be stored; the bank then stays as it is.
    """
    with BankEditor(folder) as editor:
        check_encoder(editor.bank, vision.hash)
        maker = Maker(vision, Compressor.load(editor.bank.compressor_folder), strict)
        there = _ids_there(editor, samples)
        removed = 0
        if update:
            removed = editor.remove(_rows_by_id(editor.bank, there.values()))
        refused = {} if update else there
        batches = Batches(
            samples, range(len(samples)), batch_size, survey(samples).repeated, workers, features,
            there=refused,
        )  # fmt: skip
        with progress("Adding memories", len(samples)) as advance:
            for batch in batches.starting_at(0):
                maker.store(batch, editor)
                advance(len(batch))
        added, skipped = len(editor.added), tuple(editor.skipped)
        if not added:
            raise BankError(
                f"{folder}: none of {len(samples)} samples could be added: "
                f"{first_few(reason for _, reason in skipped) or 'there are none'}"
            )
        bank = editor.commit(f"updated {added}" if update else f"added {added}")
    for _, reason in skipped[:5]:
        logger.warning("left out: %s", reason)
    return Change(bank, added, removed, skipped)


def _ids_there(editor: BankEditor, samples: Sequence[Sample]) -> dict[int, str]:
    """Samples (by index) whose id the bank has already."""
    live = set(editor.bank.live.tolist())
    rows = editor.bank.entries.rows_with("id", (sample.id for sample in samples))
    known = {entry.id for row, entry in editor.bank.entries.at(rows).items() if row in live}
    return {index: one.id for index, one in enumerate(samples) if one.id in known}


def _rows_by_id(bank: MemoryBank, ids: Iterable[str]) -> list[int]:
    """Rows in the bank of these ids."""
    rows = np.asarray(bank.entries.rows_with("id", ids), dtype=np.int64)
    return np.setdiff1d(rows, bank.removed).tolist()


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
    names, sources = sorted(set(ids)), sorted(set(sources))
    with BankEditor(folder) as editor:
        bank = editor.bank
        wanted = _rows_by_id(bank, names)
        known = {entry.id for entry in bank.entries.at(wanted).values()}
        if missing := [name for name in names if name not in known]:
            raise BankError(
                f"{folder}: not in this bank: {first_few(missing)}; nothing was removed"
            )
        if sources:
            wanted += bank.rows_from(sources).tolist()
        count = editor.remove([*wanted, *rows])
        bank = editor.commit(f"removed {count}")
    return Change(bank, removed=count)


def merge_banks(folders: Sequence[str | Path], out: str | Path, *, keep: str = "error") -> Change:
    """One new bank of the entries of several, which must share encoder, Perceiver and keys.

    Keys and values are copied as they are coded. keep: "error" refuses an id that two banks
    have, "first" takes it from the first of them. Raises BankError naming what differs.
    """
    if keep not in ("error", "first"):
        raise BankError(f"keep is {keep!r}; expected error or first")
    banks = [MemoryBank.open(folder) for folder in folders]
    if not banks:
        raise BankError("no banks to merge were given")
    for bank in banks[1:]:
        _check_alike(banks[0], bank)
    Path(out).mkdir(parents=True, exist_ok=True)
    with WriteLock(out):
        return _merge(banks, Path(out), keep)


def _merge(banks: Sequence[MemoryBank], out: Path, keep: str) -> Change:
    base, hashes = banks[0].manifest, [bank.hash for bank in banks]
    if finish_commit(out):
        raise BankError(f"{out}: holds a bank already; choose another folder")
    writer = BankWriter(out, hash_json([hashes, keep]), base.key_coding, base.value_coding)
    writer.restart()
    skipped: list[tuple[str, str]] = []
    try:
        with progress("Merging", sum(len(bank) for bank in banks)) as advance:
            for bank in banks:
                skipped += _copy(bank, writer, keep, advance)
        Compressor.load(banks[0].compressor_folder).save(writer.building / COMPRESSOR)
        manifest = replace(
            base, dataset_hash=hash_json(hashes), build={"merged": hashes}, segments=(),
            compressor={}, generation=1, commit=1, removed=0,
        )  # fmt: skip
        merged = writer.commit(manifest)
    finally:
        writer.close()
    return Change(merged, len(merged), 0, tuple(skipped))


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
    writer.progress.coding += bank.manifest.coding_error
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
