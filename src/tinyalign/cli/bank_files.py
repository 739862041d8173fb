"""`tinyalign bank export` and `import`: a bank as parquet, and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinyalign.cli.options import POSITIONAL
from tinyalign.cli.output import say, say_json, size


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
    """Write a bank as a parquet file, one row an entry, with its compressor's files beside it."""
    from tinyalign.memory.bank import MemoryBank
    from tinyalign.memory.parquet import TABLE, export_bank
    from tinyalign.serving.load import find_bank

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
    from tinyalign.memory.parquet import import_bank

    bank = import_bank(args.folder, args.out)
    if args.json:
        say_json({"bank": bank.folder, **bank.info()})
    else:
        say(f"{bank.folder}: {len(bank)} entries, {size(bank.info()['bytes'])}")
    return 0
