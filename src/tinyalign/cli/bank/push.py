"""`tinyalign bank push`: a bank's keys and entries into Milvus, for searches from many machines."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Literal

from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import facts, say, say_json, say_table


@dataclass(kw_only=True)
class BankPushArgs:
    """Arguments of `tinyalign bank push`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, or the folder of a run that used it."""
    uri: str = field(metadata=POSITIONAL)
    """Where to: milvus://host:port/collection, or milvus+lite:FILE.db/collection."""
    collection: str | None = None
    """The collection, where the URI does not name it; "tinyalign" by default."""
    index: Literal["flat", "hnsw", "autoindex"] | None = None
    """How a new collection is searched: "flat" is exact, and the default."""
    replace: bool = False
    """Empty a collection that holds another bank, or this one before it was compacted."""
    json: bool = False
    """Print what was done as JSON."""


def bank_push(args: BankPushArgs) -> int:
    """Bring a Milvus collection to what a bank is now: add what is missing, delete what is gone.

    Values stay in the bank's folder. A push that was interrupted goes on when it is given again.
    """
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.milvus.address import MilvusAddress
    from tinyalign.memory.milvus.push import push_bank
    from tinyalign.memory.open_bank import find_bank

    address = MilvusAddress.parse(args.uri, args.collection)
    bank = MemoryBank.open(find_bank(args.bank))
    done = push_bank(bank, address, index=args.index, replace_other=args.replace)
    counts = {"added": done.added, "deleted": done.deleted, "kept": done.kept}
    if args.json:
        say_json({"bank": str(done.address), **counts, "entries": done.entries})
    else:
        rows = [(name, str(count)) for name, count in counts.items()]
        say_table(facts([*rows, ("entries", done.entries)], f"Collection {address.collection}"))
        say(f"next: tinyalign bank search {shlex.quote(str(done.address))} --text WORDS")
    return 0
