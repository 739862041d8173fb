"""Opening a bank wherever it is: a folder, or a Milvus collection beside one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.milvus.address import is_milvus
from tinyalign.memory.milvus.index import MilvusIndex
from tinyalign.memory.search.index import Index


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
