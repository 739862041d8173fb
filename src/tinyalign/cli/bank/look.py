"""`tinyalign bank info`, `search`, `verify` and `log`: looking at a bank without changing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyalign.cli.bank.encoder_options import bank_encoder
from tinyalign.cli.front.options import POSITIONAL, refuse_blank
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table, size
from tinyalign.cli.search_options import SearchOptions
from tinyalign.errors import BankError, ConfigError
from tinyalign.log import logger
from tinyalign.vocabulary import RECALL, Engine

if TYPE_CHECKING:
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.search.index import Index
    from tinyalign.memory.search.retriever import Hit

FIRST = 64  # entries looked at before it is known how many are similar enough
SOURCES = 10  # data sets that `info` names


@dataclass(kw_only=True)
class BankArgs:
    """A bank that is looked at."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, or the folder of a run that used it."""
    json: bool = False
    """Print it as JSON."""


@dataclass(kw_only=True)
class BankInfoArgs(BankArgs):
    """Arguments of `tinyalign bank info`."""

    verify: bool = False
    """Also read every byte and compare it with the hashes of the manifest."""


def bank_info(args: BankInfoArgs) -> int:
    """What a bank was made of and by, how large it is, and what its coding loses."""
    from tinyalign.memory.open_bank import find_bank, open_bank

    bank = open_bank(find_bank(args.bank)).bank
    if args.verify:
        bank.verify()
    if args.json:
        say_json({"bank": bank.folder, **bank.info(), "verified": args.verify})
    else:
        say_table(info_table(bank.info(), str(bank.folder)))
        say("every byte is as it was committed" if args.verify else "--verify reads every byte")
    return 0


def info_table(info: dict[str, Any], title: str) -> Any:
    """`MemoryBank.info` for people."""
    loss = f", {100 * info['values_relative_error']:.3f} % off" if info["count"] else ""
    rows = [
        ("entries", info["count"]),
        ("removed rows still on disk", info["removed"]),
        ("commits", info["commit"]),
        ("sources", _sources(info["sources"])),
        ("size", size(info["bytes"])),
        ("  of these, the Perceiver", size(info["perceiver_bytes"])),
        ("values", f"{info['n_latents']} x {info['d_latents']} {info['values_dtype']}{loss}"),
        ("keys", f"{info['key_dim']} {info['keys_dtype']}, {info['key_kind']}"),
        ("the image's share of a key", info["alpha"]),
        ("vision encoder", f"{info['vision_name'] or 'unnamed'} ({info['vision_hash']})"),
        ("Perceiver", info["perceiver_hash"]),
        ("key function", info["key_hash"]),
        ("data set", info["dataset_hash"]),
        ("left out when built", info["build"].get("skipped", 0)),
        ("format", info["format_version"]),
        ("identity", info["hash"]),
    ]
    return facts(rows, title)


def _sources(counts: dict[str, int]) -> str:
    named = [f"{name or 'unnamed'}: {count}" for name, count in list(counts.items())[:SOURCES]]
    more = [f"and {len(counts) - SOURCES} more"] if len(counts) > SOURCES else []
    return "\n".join(named + more)


@dataclass(kw_only=True)
class BankVerifyArgs(BankArgs):
    """Arguments of `tinyalign bank verify`."""


def bank_verify(args: BankVerifyArgs) -> int:
    """Read every byte of a bank and name all damage: hashes, counts, dimensions, orphan rows.

    A kept index of approximate search is read too; it is a cache, and a damaged one is made anew.
    Ends with exit code 1 if anything is wrong.
    """
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.bank.manifest import MANIFEST
    from tinyalign.memory.bank.verification import damage
    from tinyalign.memory.open_bank import find_bank
    from tinyalign.memory.search.index_note import index_problems

    folder = find_bank(args.bank)
    try:
        found = damage(folder) or list(index_problems(MemoryBank.open(folder)))
    except BankError as error:
        if not (Path(folder) / MANIFEST).is_file():
            raise
        found = [str(error)]
    if args.json:
        say_json({"bank": folder, "ok": not found, "problems": found})
    else:
        for problem in found:
            say(problem)
        say(f"{folder}: {len(found)} problems" if found else f"{folder}: every byte is sound")
    return int(bool(found))


@dataclass(kw_only=True)
class BankLogArgs(BankArgs):
    """Arguments of `tinyalign bank log`."""


def bank_log(args: BankLogArgs) -> int:
    """The commits of a bank, oldest first: what each one added and removed."""
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.open_bank import find_bank

    bank = MemoryBank.open(find_bank(args.bank))
    commits = bank.entries.commits()
    if args.json:
        say_json({"bank": bank.folder, "commits": [asdict(one) for one in commits]})
    else:
        rows = [(one.number, one.added, one.removed, one.note) for one in commits]
        say_table(columns(("commit", "added", "removed", "what"), rows))
    return 0


@dataclass(kw_only=True)
class BankSearchArgs(SearchOptions, BankArgs):
    """Arguments of `tinyalign bank search`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, the folder of a run that used it, or its Milvus URI."""
    image: str | None = None
    """An image to search by."""
    text: str | None = None
    """An instruction to search by, such as a question."""
    k: int = 5
    """How many memories to find."""
    source: list[str] = field(default_factory=list)
    """Only memories from this data set; give it again for another one."""
    vision: str | None = None
    """Vision encoder; by default the one that the bank names."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""


def bank_search(args: BankSearchArgs) -> int:
    """The memories nearest to an image, an instruction, or both, as a model's query finds them."""
    from tinyalign.memory.open_bank import find_bank, open_bank
    from tinyalign.memory.search.retriever import are_related

    if args.k < 1:
        raise ConfigError(f"--k must be at least 1, found {args.k}")
    find = Finder(args.image, args.text, args.vision, args.device)
    opened = open_bank(find_bank(args.bank))
    bank = opened.bank
    hits = find.nearest(bank, args.k, args.source, args.engine, args.recall, index=opened.index)
    if args.json:
        found = [{"score": h.score, "row": h.row, **asdict(h.entry)} for h in hits]
        say_json({"bank": bank.folder, "k": args.k, "found": found})
    else:
        say_table(hits_table(hits))
    if not are_related(hits):
        kind = bank.manifest.key_kind
        logger.warning(
            "no key is anything like this search, so these are just some entries; %s keys know "
            "images and %s", kind,
            "texts" if kind in ("aligned", "joint") else "instructions, but no answers",
        )  # fmt: skip
    return 0


def hits_table(hits: Sequence[Hit]) -> Any:
    """What a search found, for people."""
    rows = [(hit.score, hit.entry.id, hit.entry.source, hit.entry.text) for hit in hits]
    return columns(("similarity", "id", "source", "text"), rows)


@dataclass(frozen=True)
class Finder:
    """A search by image, by text, or by both."""

    image: str | None
    text: str | None
    vision: str | None
    device: str

    def __post_init__(self) -> None:
        if self.image is None and self.text is None:
            raise ConfigError("nothing to search by; give --image FILE, --text WORDS, or both")
        refuse_blank(text=self.text)

    def nearest(
        self,
        bank: MemoryBank,
        k: int | None,
        sources: Sequence[str] = (),
        engine: Engine = "auto",
        recall: float = RECALL,
        at_least: float = float("-inf"),
        index: Index | None = None,
    ) -> list[Hit]:
        """The k nearest of these data sets (of all without any) that are similar at least so much.

        k: None for as many as there are. index: what to search instead of the bank's own keys.
        """
        from tinyalign.data.images import load_image
        from tinyalign.data.sample import ImageRef
        from tinyalign.memory.search.retriever import Retriever
        from tinyalign.model.device import choose_device

        device = choose_device(self.device)
        room = FIRST if k is None else k
        retriever = Retriever.open(
            bank, room, device=str(device), engine=engine, recall=recall, index=index
        )
        features = None
        if self.image is not None:
            image = load_image(ImageRef(path=self.image))
            features = bank_encoder(bank, self.vision, device).encode([image])[0]
        only = list(sources) or None
        hits = retriever.search(None, self.text, features=features, sources=only)
        while k is None and len(hits) == room and hits[-1].score >= at_least:
            room *= 8
            hits = retriever.search(None, self.text, features=features, sources=only, k=room)
        return [hit for hit in hits if hit.score >= at_least]
