"""`tinyalign bank audit`: what a bank already knows of the data that a model is judged on."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyalign.cli.bank.encoder_options import bank_encoder, say_skipped
from tinyalign.cli.front.options import DataOptions
from tinyalign.cli.front.output import columns, facts, percent, say, say_json, say_table
from tinyalign.errors import ConfigError
from tinyalign.vocabulary import NEAR_DUPLICATE

SHOWN = 10  # samples that are spelled out


if TYPE_CHECKING:
    from tinyalign.memory.audit import Audit, Overlap


@dataclass(kw_only=True)
class BankAuditArgs(DataOptions):
    """Arguments of `tinyalign bank audit`."""

    bank: str
    """The bank's folder, or the folder of a run that used it."""
    k: int = 5
    """A sample's own entry counts as found among so many of the best."""
    near: float = NEAR_DUPLICATE
    """Similarity from which two keys count as nearly the same."""
    out: str | None = None
    """File for the list of samples that the bank knows: one JSON object a line in a .jsonl file,
    the whole report otherwise."""
    overwrite: bool = False
    """Replace that file if it is there."""
    vision: str | None = None
    """Vision encoder; by default the one that the bank names."""
    batch_size: int = 32
    """Images encoded at once."""
    workers: int = 0
    """Processes that decode images; 0 decodes in between."""
    seed: int = 0
    """Of the draw of captions."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it."""
    json: bool = False
    """Print the report, the list in it, as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"--k must be at least 1, found {self.k}")
        if not -1 <= self.near <= 1:
            raise ConfigError(f"--near is a cosine, from -1 to 1, found {self.near:g}")


def bank_audit(args: BankAuditArgs) -> int:
    """Look for evaluation data in a bank: the same images, ids and texts, and nearly the same keys.

    Self-hits are samples that a search would answer with their own entry, if nothing kept it
    from doing so. An id counts only together with the data set it came from.
    """
    from tinyalign.memory.audit import audit_samples
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.open_bank import find_bank
    from tinyalign.model.device import choose_device
    from tinyalign.training.recipe.sources import open_source

    if args.out is not None and Path(args.out).exists() and not args.overwrite:
        raise ConfigError(f"{args.out}: exists already; choose another --out, or give --overwrite")
    bank = MemoryBank.open(find_bank(args.bank))
    samples = open_source(args, args.seed, strict=args.strict)
    found = audit_samples(
        bank,
        samples,
        bank_encoder(bank, args.vision, choose_device(args.device)),
        k=args.k,
        near=args.near,
        batch_size=args.batch_size,
        workers=args.workers,
        strict=args.strict,
    )
    if args.out is not None:
        _write(Path(args.out), found)
    if args.json:
        say_json({"bank": bank.folder, "data": args.path, **found.as_dict()})
        return 0
    say_table(_table(found, f"{args.path} in {bank.folder}"))
    if found.found:
        say_table(columns(("id", "what the bank has"), map(_row, found.found[:SHOWN])))
    if len(found.found) > SHOWN:
        say(f"and {len(found.found) - SHOWN} more; --out FILE or --json lists them")
    say_skipped(found.skipped, say)
    return 0


def _write(path: Path, found: Audit) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        lines = [jsonlib.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found.found]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        content = jsonlib.dumps(found.as_dict(), ensure_ascii=False, indent=2)
        path.write_text(content + "\n", encoding="utf-8")


def _table(found: Audit, title: str) -> Any:
    counts = [
        ("image in the bank", found.same_image),
        ("id in the bank, from the same data set", found.same_id),
        ("own entry would be found first", found.self_hits),
        (f"own entry among the {found.k} best", found.self_hits_at_k),
        (f"another key at least {found.threshold:g} similar", found.near),
        ("another entry has the same text", found.same_text),
        ("  both of these, in one entry", found.near_same_text),
    ]
    rows = [("samples", str(found.samples)), ("entries in the bank", str(found.entries))]
    for name, count in counts:
        rows.append((name, f"{count} ({percent((count or 0) / found.samples)})"))
    return facts(rows, title)


def _row(one: Overlap) -> tuple[str, str]:
    parts = {
        "image": ", ".join(one.same_image),
        "id": ", ".join(one.same_id),
        "near": ", ".join(f"{name} ({score:.3f})" for name, score in one.near),
        "text": ", ".join(one.same_text),
    }
    return one.id, "; ".join(f"{name}: {value}" for name, value in parts.items() if value)
