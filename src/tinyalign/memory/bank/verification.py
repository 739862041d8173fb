"""Checking a bank's files against its manifest: sizes, hashes, and that each row has its entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from tinyalign.errors import BankError
from tinyalign.hashing import hash_file, hash_range
from tinyalign.memory.bank.entries import Entries
from tinyalign.memory.bank.files import cannot_read
from tinyalign.memory.bank.manifest import Manifest, SegmentRecord

DAMAGED = "restore it from a copy or build the bank again"


def damage(folder: str | Path) -> list[str]:
    """Read every byte of a bank; what does not fit its manifest, one sentence each. []: whole.

    Finds more than opening does, which stops at files that are missing or too short. If a writer
    commits meanwhile, it is the bank as it is then that is read. Raises BankError where there is
    no manifest that can be read.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    while found := list(_problems(folder, manifest)):
        latest = Manifest.read(folder)
        if latest.hash == manifest.hash:
            break
        manifest = latest
    return found


def wrong_sizes(folder: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """Name of each file that is missing, cannot be read or is too short → what is wrong with it.

    A file may be longer than what is committed of it, never shorter.
    """
    found = {name: _wrong_size(folder / name, expected) for name, expected in sizes.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def wrong_segment(
    folder: Path, manifest: Manifest, one: SegmentRecord, known: Collection[str] = ()
) -> list[str]:
    """What does not fit the record of a segment, after reading every byte of it.

    known: files that are not looked at, because what is wrong with them was said already.
    """
    found = []
    if one.name not in known:
        problem = _wrong_file(folder / one.name, one.bytes, one.hash)
        found += [problem] if problem else list(_wrong_rows(folder / one.name, one))
    for name, record, expected in (
        (manifest.keys_name, manifest.key_coding.record, one.keys_hash),
        (manifest.values_name, manifest.value_coding.record, one.values_hash),
    ):
        if name not in known:
            found += _wrong_array(folder / name, one, record.itemsize, expected)
    return found


def removed_rows(folder: Path, manifest: Manifest, entries: Entries) -> np.ndarray:
    """Rows that were removed as of this manifest (int64, sorted).

    Raises BankError where they are not as many as it says, or lie outside the bank.
    """
    found = entries.removed()
    if len(found) != manifest.removed or (found >= manifest.rows).any():
        raise BankError(
            f"{folder}: {len(found)} removed rows below {found.max(initial=-1) + 1}, "
            f"the manifest says {manifest.removed} of {manifest.rows}; {DAMAGED}"
        )
    return found


def _problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    known = wrong_sizes(folder, manifest.sizes)
    yield from known.values()
    for name, facts in manifest.perceiver_files.items():
        problem = _wrong_file(folder / name, facts["bytes"], facts["hash"])
        if problem and name not in known:
            yield problem
    wrong = [wrong_segment(folder, manifest, one, known) for one in manifest.segments]
    yield from (problem for problems in wrong for problem in problems)
    if not any(wrong) and known.keys().isdisjoint(one.name for one in manifest.segments):
        yield from _wrong_ids(folder, manifest)


def _wrong_ids(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Damage that shows only over all segments: removed rows, and ids that are there twice."""
    entries = Entries([folder / one.name for one in manifest.segments])
    try:
        gone = set(removed_rows(folder, manifest, entries).tolist())
    except BankError as error:
        yield str(error)
        return
    live = Counter(name for row, name in enumerate(entries.column("id")) if row not in gone)
    if twice := [name for name, count in live.items() if count > 1]:
        yield f"{folder}: {len(twice)} ids are there twice (first {twice[0]}); {DAMAGED}"


def _wrong_rows(path: Path, one: SegmentRecord) -> Iterator[str]:
    found = Entries([path]).segments[0].rows()
    expected = set(range(one.start, one.stop))
    if orphans := sorted(set(found) - expected):
        yield (
            f"{path}: {len(orphans)} orphan rows (first {orphans[0]}) that have no key and "
            f"value, outside {one.start}..{one.stop - 1}; {DAMAGED}"
        )
    if missing := sorted(expected - set(found)):
        yield (f"{path}: {len(missing)} rows without an entry (first {missing[0]}); {DAMAGED}")


def _wrong_array(path: Path, one: SegmentRecord, size: int, expected: str) -> Iterator[str]:
    """size: bytes of a row."""
    try:
        found = hash_range(path, one.start * size, one.stop * size)
    except OSError as error:
        yield str(cannot_read(path, error))
        return
    if found != expected:
        yield (
            f"{path}: rows {one.start} to {one.stop - 1} changed since they were "
            f"committed (hash {found}, expected {expected}); {DAMAGED}"
        )


def _wrong_file(path: Path, size: int, expected: str) -> str | None:
    try:
        if path.stat().st_size == size and hash_file(path) == expected:
            return None
    except OSError as error:
        return str(cannot_read(path, error))
    return f"{path}: its content changed since it was committed; {DAMAGED}"


def _wrong_size(path: Path, expected: int) -> str | None:
    try:
        if not path.is_file():
            return f"{path}: missing; {DAMAGED}"
        found = path.stat().st_size
    except OSError as error:
        return str(cannot_read(path, error))
    if found < expected:
        return f"{path}: expected {expected} bytes, found {found}; it was truncated. {DAMAGED}"
    return None
