"""`tinyalign bank add`, `update` and `remove`: changing what is in a bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tinyalign.cli.bank.encoder_options import bank_encoder, say_skipped, skipped_list
from tinyalign.cli.bank.look import Finder
from tinyalign.cli.front.options import NAME, POSITIONAL, DataOptions, refuse_blank
from tinyalign.cli.front.output import columns, say, say_json, say_table
from tinyalign.errors import ConfigError

if TYPE_CHECKING:
    from tinyalign.data.sample import Sample
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.bank.entries import Entry
    from tinyalign.memory.building.changes import Change

LISTED = 20  # entries that are named to people


@dataclass(kw_only=True)
class BankAddArgs(DataOptions):
    """Arguments of `tinyalign bank add` and `tinyalign bank update`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder."""
    path: str = field(default="", metadata=POSITIONAL | {NAME: "data"})
    """Pairs: a file, folder or glob, or the name "easy_vqa"; or else give --image and --text."""
    image: str | None = None
    """Instead of data: the image of one pair."""
    text: str | None = None
    """The text of that pair: what is to be remembered."""
    instruction: str | None = None
    """The question that the text answers, if it is an answer."""
    id: str | None = None
    """Name of that pair; by default made from its content."""
    source: str | None = None
    """Data set to note with the entries, to filter and remove them by; by default the name of
    the data, and "added" for one pair."""
    vision: str | None = None
    """Vision encoder; by default the one that the bank names."""
    batch_size: int = 32
    """Pairs encoded at once."""
    workers: int = 0
    """Processes that decode images; 0 decodes in between."""
    seed: int = 0
    """Of the draw of captions."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it; nothing is added."""
    json: bool = False
    """Print the report as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one = {"image": self.image, "text": self.text}
        given = [name for name, value in one.items() if value is not None]
        if bool(self.path) == bool(given):
            raise ConfigError(
                "nothing to add; give DATA, or --image FILE and --text WORDS" if not given
                else f"--{given[0]} is for one pair and DATA for many; give one of them"
            )  # fmt: skip
        if given and len(given) < 2:
            raise ConfigError("a memory is an image and a text; give both --image and --text")
        if self.path and (self.instruction is not None or self.id is not None):
            raise ConfigError("--instruction and --id are for one pair, with --image and --text")
        refuse_blank(text=self.text, id=self.id)


def bank_add(args: BankAddArgs) -> int:
    """Remember more pairs: from a data set, or one image and text.

    They are made with the bank's own models and appear in one step: to whoever opens the bank
    next, and to readers that refresh. A pair whose id is in the bank already is left out.
    """
    return _add(args, update=False)


def bank_update(args: BankAddArgs) -> int:
    """Replace the pairs whose ids are in the bank, and add those whose ids are not.

    An old entry goes in the same step in which its new one comes; where the new one cannot be
    made, the old one stays. One pair given with --image and --text keeps the --source and the
    --instruction of the entry it replaces where they are not given.
    """
    if not args.path and args.id is None:
        raise ConfigError("which entry is to be replaced? give its --id")
    return _add(args, update=True)


def _add(args: BankAddArgs, update: bool) -> int:
    from tinyalign.memory.building.changes import add_samples
    from tinyalign.memory.open_bank import own_bank
    from tinyalign.model.device import choose_device

    bank = own_bank(args.bank)
    samples = _pairs(_as_before(args, bank) if update else args)
    change = add_samples(
        args.bank,
        samples,
        bank_encoder(bank, args.vision, choose_device(args.device)),
        update=update,
        batch_size=args.batch_size,
        workers=args.workers,
        strict=args.strict,
    )
    say_change(args, change)
    if not args.json:
        say_skipped(change.skipped, say)
    return 0


def _as_before(args: BankAddArgs, bank: MemoryBank) -> BankAddArgs:
    """One pair, with what is not given taken from the entry that it replaces."""
    rows = bank.entries.rows_with("id", [args.id]) if args.id is not None else []
    there = bank.entries.at([row for row in rows if row not in bank.removed])
    if not there:
        return args
    old = next(iter(there.values()))
    source = old.source if args.source is None else args.source
    instruction = old.instruction if args.instruction is None else args.instruction
    return replace(args, source=source, instruction=instruction)


def _pairs(args: BankAddArgs) -> Sequence[Sample]:
    from tinyalign.training.recipe.sources import Renamed, open_source

    if args.image is not None:
        return [_one_pair(args, args.image)]
    samples = open_source(args, args.seed, strict=args.strict)
    return samples if args.source is None else Renamed(samples, args.source)


def _one_pair(args: BankAddArgs, image: str) -> Sample:
    from tinyalign.data.images import image_hash
    from tinyalign.data.sample import ImageRef, Message, Sample
    from tinyalign.hashing import hash_json

    ref = ImageRef(path=image)
    content = hash_json([image_hash(ref), args.instruction, args.text])
    messages = [Message("assistant", args.text or "")]
    if args.instruction:
        messages.insert(0, Message("user", args.instruction))
    name, source = args.id or f"added-{content}", args.source or "added"
    return Sample(id=name, images=(ref,), messages=tuple(messages), source=source)


def say_change(args: Any, change: Change, **more: Any) -> None:
    """What a change did, in one line or as JSON."""
    if args.json:
        counts = {"added": change.added, "removed": change.removed, "entries": len(change.bank)}
        skipped = skipped_list(change.skipped)
        say_json({"bank": change.bank.folder, **counts, **more, "skipped": skipped})
        return
    done = [
        f"{n} {what}" for n, what in ((change.added, "added"), (change.removed, "removed")) if n
    ]
    say(f"{change.bank.folder}: {', '.join(done)}; {len(change.bank)} entries now")


# -- removing ----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class BankRemoveArgs:
    """Arguments of `tinyalign bank remove`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder."""
    id: list[str] = field(default_factory=list)
    """Remove the entry with this id; give it again for another one."""
    source: list[str] = field(default_factory=list)
    """Remove every entry of this data set, or with --image or --text look only there; give it
    again for another one."""
    image: str | None = None
    """Remove what a search by this image finds."""
    text: str | None = None
    """Remove what a search by this instruction finds."""
    k: int | None = None
    """Of a search, remove at most so many of the nearest."""
    at_least: float | None = None
    """Of a search, remove only entries that are so similar, 1 being the same."""
    dry_run: bool = False
    """Only list what would be removed."""
    vision: str | None = None
    """Vision encoder; by default the one that the bank names."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    json: bool = False
    """Print the report as JSON."""

    def __post_init__(self) -> None:
        query = self.image is not None or self.text is not None
        if not (query or self.id or self.source):
            raise ConfigError("nothing to remove; give --id, --source, --image or --text")
        if self.id and (query or self.source):
            raise ConfigError("--id names entries; it does not go with --source or a search")
        if query and self.k is None and self.at_least is None:
            raise ConfigError("how much of what the search finds? give --k, --at-least, or both")
        if not query and (self.k is not None or self.at_least is not None):
            raise ConfigError("--k and --at-least are for a search; give --image or --text")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"--k must be at least 1, found {self.k}")
        refuse_blank(text=self.text, id=self.id)


def bank_remove(args: BankRemoveArgs) -> int:
    """Forget entries: by id, by data set, or those that a search finds.

    They are gone from the next search of everyone who has the bank open. Their room on the disk
    is freed by `tinyalign bank compact`.
    """
    from tinyalign.memory.building.changes import Change, remove_entries
    from tinyalign.memory.open_bank import own_bank

    bank = own_bank(args.bank)
    entries = _to_remove(args, bank)
    if args.dry_run or not entries:
        change = Change(bank)
    else:
        change = remove_entries(args.bank, ids=[entry.id for entry in entries])
    if args.json:
        listed = [asdict(entry) for entry in entries]
        say_change(args, change, dry_run=args.dry_run, listed=listed)
        return 0
    say_table(
        columns(("id", "source", "text"), [(e.id, e.source, e.text) for e in entries[:LISTED]])
    )
    if len(entries) > LISTED:
        say(f"and {len(entries) - LISTED} more; --json lists them all")
    if args.dry_run or not entries:
        say(f"{args.bank}: {len(entries)} would be removed; nothing was")
    else:
        say_change(args, change)
    return 0


def _to_remove(args: BankRemoveArgs, bank: MemoryBank) -> list[Entry]:
    """The entries asked for, in order of row, or of similarity."""
    from tinyalign.memory.building.changes import find_rows
    from tinyalign.memory.search.retriever import are_related

    if args.image is None and args.text is None:
        found = bank.entries.at(find_rows(bank, args.id, args.source))
        return [found[row] for row in sorted(found)]
    find = Finder(args.image, args.text, args.vision, args.device)
    least = float("-inf") if args.at_least is None else args.at_least
    hits = find.nearest(bank, args.k, args.source, "exact", at_least=least)
    if args.at_least is None and not are_related(hits):
        raise ConfigError(
            f"{bank.folder}: no key is anything like this search, so what it finds are just some "
            "entries and none was removed; name entries by --id, or give --at-least"
        )
    return [hit.entry for hit in hits]
