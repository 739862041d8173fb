"""`tinyalign bank merge`, `compact`, `export` and `import`: what is done to whole banks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinyalign.cli.bank.changes import say_change
from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import say, say_json, size


@dataclass(kw_only=True)
class BankExportArgs:
    """Arguments of `tinyalign bank export`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, or the folder of a run that used it."""
    out: str
    """Folder to write; it must be new or empty."""
    json: bool = False
    """Print the report as JSON."""


def bank_export(args: BankExportArgs) -> int:
    """Write a bank as a parquet file, one row an entry, with its Perceiver's files beside it."""
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.building.parquet import TABLE, export_bank
    from tinyalign.memory.open_bank import find_bank

    bank = MemoryBank.open(find_bank(args.bank))
    out = export_bank(bank, args.out)
    written = (out / TABLE).stat().st_size
    if args.json:
        say_json({"out": out, "entries": len(bank), "bytes": written})
    else:
        say(f"{out / TABLE}: {len(bank)} entries, {size(written)}")
        say(f"next: tinyalign bank import {out} --out BANK")
    return 0


@dataclass(kw_only=True)
class BankImportArgs:
    """Arguments of `tinyalign bank import`."""

    folder: str = field(metadata=POSITIONAL)
    """Folder that `tinyalign bank export` wrote."""
    out: str
    """Folder of the new bank."""
    json: bool = False
    """Print the report as JSON."""


def bank_import(args: BankImportArgs) -> int:
    """Make a bank of an exported one: the same entries, keys and values, to the last bit."""
    from tinyalign.memory.building.parquet import import_bank

    bank = import_bank(args.folder, args.out)
    if args.json:
        say_json({"bank": bank.folder, **bank.info()})
    else:
        say(f"{bank.folder}: {len(bank)} entries, {size(bank.info()['bytes'])}")
    return 0


@dataclass(kw_only=True)
class BankMergeArgs:
    """Arguments of `tinyalign bank merge`."""

    banks: list[str] = field(metadata=POSITIONAL)
    """The folders of the banks, or of runs that used them, in order. One alone is copied."""
    out: str
    """Folder of the new bank."""
    keep: Literal["error", "first"] = "error"
    """Of entries with the same id: "error" stops, "first" keeps that of the first bank."""
    json: bool = False
    """Print the report as JSON."""


def bank_merge(args: BankMergeArgs) -> int:
    """One new bank of the entries of several, which must be made by the same models.

    Keys and values are copied as they are; the banks themselves stay as they were.
    """
    from tinyalign.memory.building.changes import merge_banks
    from tinyalign.memory.open_bank import find_bank

    change = merge_banks([find_bank(one) for one in args.banks], args.out, keep=args.keep)
    say_change(args, change)
    if change.skipped and not args.json:
        say(f"left out: {len(change.skipped)} whose ids are in an earlier bank")
    return 0


@dataclass(kw_only=True)
class BankCompactArgs:
    """Arguments of `tinyalign bank compact`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder."""
    json: bool = False
    """Print the report as JSON."""


def bank_compact(args: BankCompactArgs) -> int:
    """Free the room of removed entries. It needs room for a second copy while it runs.

    Readers that have the bank open keep the view they have until they refresh.
    """
    from tinyalign.memory.building.editor import compact
    from tinyalign.memory.open_bank import own_bank

    before = own_bank(args.bank).info()
    bank = compact(args.bank)
    freed = before["bytes"] - bank.info()["bytes"]
    if args.json:
        say_json({"bank": bank.folder, "entries": len(bank), "freed_bytes": freed})
    else:
        say(f"{bank.folder}: {len(bank)} entries, {size(freed)} freed")
    return 0
