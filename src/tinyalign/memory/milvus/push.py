"""Bringing a Milvus collection to what a bank is now: what is missing goes in, what is gone out.

A push that was interrupted goes on when it is given again, and one that has nothing to do does
nothing. Rows of a bank never change between compactions, so those that are in the collection are
left alone, provided that a hash of all they hold says that they are this bank's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

import numpy as np

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import DIGITS
from tinyalign.log import logger, progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.milvus.address import MilvusAddress
from tinyalign.memory.milvus.collection import (
    ROW,
    IndexKind,
    MilvusCollection,
    Record,
    Span,
    among,
)

BATCH = 512  # entries sent at once; with the longest texts this stays below 64 MiB
HASH_ROWS = 4096


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    address: MilvusAddress
    """Where the bank can be used from now on."""
    added: int
    deleted: int
    kept: int
    """Entries that were there already."""

    @property
    def entries(self) -> int:
        """Entries that the collection holds now: those of the bank."""
        return self.added + self.kept


def push_bank(
    bank: MemoryBank,
    address: MilvusAddress,
    *,
    index: IndexKind | None = None,
    replace_other: bool = False,
) -> Pushed:
    """Make the collection hold exactly the entries of this bank, with their rows and keys.

    index: "flat" (exact, the default), "hnsw" or "autoindex"; a collection keeps the one it was
    made with. replace_other: empty a collection that holds another bank, or this one before it
    was compacted; it is refused otherwise, with a BankError.
    """
    collection = MilvusCollection(address)
    try:
        record = _prepared(collection, bank, index, replace_other)
        live = np.setdiff1d(np.arange(bank.rows), bank.entries.removed())
        deleted = _trim(collection, bank.rows, live)
        present = collection.rows(bank.rows)
        kept = np.intersect1d(present, live)
        missing = np.setdiff1d(live, kept)
        _put(collection, bank, missing)
        if len(missing) or deleted:
            collection.flush()
        if (found := collection.count()) != len(live):
            raise BankError(
                f"{address}: holds {found} entries after the push, the bank {len(live)}; somebody "
                "else wrote to it meanwhile. Push again"
            )
        collection.write_record(
            replace(
                record,
                done=record.begun,
                bank=bank.hash,
                commit=bank.manifest.commit,
                folder=str(bank.folder.resolve()),
            )
        )
    finally:
        collection.close()
    return Pushed(address.with_values(bank.folder), len(missing), deleted, len(kept))


def _prepared(
    collection: MilvusCollection, bank: MemoryBank, index: IndexKind | None, replace_other: bool
) -> Record:
    """The record of a collection that this push has begun on; all rows in it are this bank's."""
    record = collection.record() if collection.exists() else None
    past = () if record is None else (record.done, record.begun)
    known = spans(bank, [bank.rows, *(one.rows for one in past)])
    if record is not None and not _is_of(record, known):
        _refuse_unless(replace_other, collection, record, bank)
        collection.drop()
        record = None
    if record is None:
        record = Record(Span(), known[-1], folder=str(bank.folder.resolve()), index=index or "flat")
        collection.create(bank.manifest.key_dim, record)
    elif index not in (None, record.index):
        raise ConfigError(
            f"{collection.address}: was made with index {record.index!r}; push into another "
            f"--collection for {index!r}"
        )
    collection.load()
    if record.begun != known[-1]:
        trusted = max(one.rows for one in past if one in known)
        collection.delete(f"{ROW} >= {trusted}")  # of a push that is not this one's beginning
        record = replace(record, begun=known[-1])
        collection.write_record(record)
    return record


def _is_of(record: Record, known: list[Span]) -> bool:
    """Whether a collection holds an earlier state of the bank whose spans these are."""
    return (record.done if record.done.rows else record.begun) in known


def _refuse_unless(
    wanted: bool, collection: MilvusCollection, record: Record, bank: MemoryBank
) -> None:
    if not wanted:
        raise BankError(
            f"{collection.address}: holds another bank than {bank.folder} (pushed from "
            f"{record.folder}), or this one before it was compacted; choose another "
            "--collection, or give --replace to empty this one first"
        )
    logger.info("%s: holds another bank, so it is emptied first", collection.address)


def spans(bank: MemoryBank, lengths: Iterable[int]) -> list[Span]:
    """The first rows of a bank, for each of these lengths that it has, with their hashes.

    Hashed are the models that made them, their keys as they lie on disk, and their entries;
    removals are not.
    """
    manifest = bank.manifest
    models = [manifest.vision_hash, manifest.perceiver_hash, manifest.key_hash, manifest.key_dim]
    keys, entries = hashlib.sha256(json.dumps(models).encode()), hashlib.sha256()
    found, start = [], 0
    for stop in sorted({one for one in lengths if one <= bank.rows}):
        for low in range(start, stop, HASH_ROWS):
            rows = range(low, min(low + HASH_ROWS, stop))
            keys.update(bank.keys[rows.start : rows.stop].tobytes())
            there = bank.entries.at(rows)
            for row in rows:
                entries.update(json.dumps(astuple(there[row])).encode())
        start = stop
        both = keys.copy()
        both.update(entries.digest())
        found.append(Span(stop, both.hexdigest()[:DIGITS]))
    return found


def _trim(collection: MilvusCollection, rows: int, live: np.ndarray) -> int:
    """Delete what the bank does not have; returns how many entries these were."""
    before = collection.count()
    if not before:
        return 0
    collection.delete(f"{ROW} >= {rows}")
    gone = np.setdiff1d(collection.rows(rows), live)
    for low in range(0, len(gone), BATCH):
        collection.delete(among(ROW, gone[low : low + BATCH].tolist()))
    return before - collection.count()


def _put(collection: MilvusCollection, bank: MemoryBank, rows: np.ndarray) -> None:
    """Send entries, with a bar."""
    with progress(f"pushing to {collection.name}", len(rows)) as advance:
        for low in range(0, len(rows), BATCH):
            some = rows[low : low + BATCH]
            entries = bank.entries.at(some)
            wanted = some.tolist()
            collection.put(wanted, bank.keys[some], [entries[row] for row in wanted])
            advance(len(wanted))
