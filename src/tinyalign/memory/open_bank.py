"""Finding and opening a bank wherever it is: a folder, a run that used one, a Milvus collection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.files import cannot_read
from tinyalign.memory.bank.manifest import MANIFEST
from tinyalign.memory.milvus.address import is_milvus
from tinyalign.memory.milvus.index import MilvusIndex
from tinyalign.memory.search.index import Index

MEMORY_NOTE = "memory.json"
"""The file of a run folder that says which bank it was trained with."""


@dataclass(frozen=True)
class OpenedBank:
    """A bank, and what searches it."""

    bank: MemoryBank
    index: Index | None
    """None: the bank is searched here, by a `KeyIndex`."""


def open_bank(where: str | Path) -> OpenedBank:
    """Open the bank in a folder, or the one that a Milvus URI names.

    Raises BankError as `MemoryBank.open` and `MilvusIndex.open` do.
    """
    if is_milvus(where):
        index = MilvusIndex.open(str(where))
        return OpenedBank(index.bank, index)
    return OpenedBank(MemoryBank.open(where), None)


def find_bank(path: str | Path) -> str | Path:
    """The folder or Milvus URI itself, or, of a run folder, the bank that it was trained with."""
    if is_milvus(path):
        return path
    folder, note = Path(path), Path(path) / MEMORY_NOTE
    try:
        if (folder / MANIFEST).is_file() or not note.is_file():
            return folder
    except OSError as error:  # a folder that this user may not look into
        raise cannot_read(folder, error) from error
    return Path(json.loads(note.read_text(encoding="utf-8"))["bank"])


def own_bank(path: str | Path) -> MemoryBank:
    """The bank in a folder, to be changed. BankError for a run folder, whose bank is not its own.

    What `train` made lies in the cache, and other runs that are made of the same read it too.
    """
    folder = Path(path)
    if (folder / MEMORY_NOTE).is_file() and not (folder / MANIFEST).is_file():
        raise BankError(
            f"{folder}: expected a bank's folder, found a run; its bank, '{find_bank(folder)}', "
            "may serve other runs too, so it is not changed from here. Make a bank of your own: "
            f"`tinyalign bank merge {folder} --out BANK`, and change that"
        )
    return MemoryBank.open(folder)
