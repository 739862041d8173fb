"""`tinyalign compress` and `tinyalign bank`: from pairs to memories, and a look at them."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyalign.cli.options import POSITIONAL, DataOptions, repeated
from tinyalign.cli.output import columns, facts, percent, say, say_json, say_table, size
from tinyalign.errors import BankError, ConfigError
from tinyalign.log import logger
from tinyalign.training.recipe import CompressArgs, KeyKind

if TYPE_CHECKING:
    from tinyalign.data.sample import Sample
    from tinyalign.model.vision import VisionEncoder
    from tinyalign.training.features import Features

UNRELATED = 1e-6  # a similarity that is none


@dataclass(kw_only=True)
class EncoderOptions(DataOptions):
    """Pairs, and the frozen encoder that looks at their images."""

    out: str
    """Folder to write."""
    vision: str = "efficientnet-lite2"
    """Vision encoder: a hub id, a folder, or a packaged name. It must be the model's."""
    cache_folder: str | None = None
    """Where vision features are kept for the next time; by default $TINYALIGN_CACHE, or
    ~/.cache/tinyalign."""
    seed: int = 0
    """Of every random draw."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it."""
    json: bool = False
    """Print the report as JSON."""


@dataclass(kw_only=True)
class CompressTrainArgs(CompressArgs, EncoderOptions):
    """Arguments of `tinyalign compress train`."""

    captions: Literal["first", "all", "random"] = "all"
    key: KeyKind = "pooled"
    """Key function that is fitted along with it and decides what a search finds. "pooled": image
    features beside the instruction's words. "attention": the paper's. "aligned": entries by their
    text, queries by what their image should say."""
    alpha: float = 0.4
    """The image's share of a key; without an instruction a key is the image's alone."""
    overwrite: bool = False
    """Replace a compressor that is in the folder already."""


def compress_train(args: CompressTrainArgs) -> int:
    """Train the compressor on pairs: its tokenizer, its Perceiver and its key function.

    Self-supervised, with no language model in sight: an image and a text go in, and both must be
    readable from the 32 latents, the text linearly. What was read back on images that were not
    trained on is printed at the end.
    """
    from tinyalign.training.compress import REPORT, train_compressor

    if (Path(args.out) / REPORT).is_file() and not args.overwrite:
        raise ConfigError(
            f"{args.out}: holds a compressor already; choose another --out, or give --overwrite"
        )
    _, samples, features, device = _seen(args)
    settings = CompressArgs(**{f.name: getattr(args, f.name) for f in fields(CompressArgs)})
    train_compressor(
        samples,
        features,
        args.out,
        settings,
        key=args.key,
        alpha=args.alpha,
        seed=args.seed,
        device=device,
    )
    report = jsonlib.loads((Path(args.out) / REPORT).read_text(encoding="utf-8"))
    if args.json:
        say_json({"out": args.out, **report})
    else:
        say_table(_held_out_table(report))
        say(f"compressor: {args.out}")
        again = repeated(args, ("path", "format", "image_folder", "split", "prompt", "vision"))
        say(f"next: tinyalign bank build {again} --compressor {args.out} --out BANK")
    return 0


def _held_out_table(report: dict[str, Any]) -> Any:
    rows = [
        ("pairs trained on", report["pairs"]),
        ("steps, seconds", f"{report['steps']}, {report['seconds']:.0f}"),
        ("tokens in the vocabulary", report["vocabulary"]),
        ("held-out pairs", report["held_out_pairs"]),
        ("  text tokens read back", percent(report["token_accuracy"])),
        ("  variance of image features read back", percent(report["image_r2"])),
        ("  texts longer than the latents, summarised", percent(report["long_texts"])),
        ("  of these, tokens recalled", percent(report["long_text_recall"])),
        ("  texts beyond the Perceiver's reach, cut", percent(report["cut_texts"])),
    ]
    return facts(rows, "What the latents hold")


@dataclass(kw_only=True)
class BankBuildArgs(EncoderOptions):
    """Arguments of `tinyalign bank build`."""

    compressor: str
    """Folder of `tinyalign compress train`, or a bank, whose compressor is used again."""
    entries: int | None = None
    """At most so many pairs, drawn with the seed; all by default."""
    batch_size: int = 32
    """Pairs encoded at once."""


def bank_build(args: BankBuildArgs) -> int:
    """Turn pairs into a memory bank: a key to find each by, and 32 latents to remember it by.

    A build that was interrupted goes on when the same command is given again.
    """
    from tinyalign.memory.builder import build_bank
    from tinyalign.memory.compressor import Compressor
    from tinyalign.training.sources import draw

    compressor = Compressor.load(find_compressor(args.compressor))
    encoder, samples, features, device = _seen(
        args, lambda found: draw(found, args.entries, args.seed)
    )
    built = build_bank(
        samples,
        encoder,
        compressor.to(device),
        args.out,
        batch_size=args.batch_size,
        features=features,
        vision_name=args.vision,
        strict=args.strict,
    )
    if args.json:
        skipped = [{"id": name, "reason": reason} for name, reason in built.skipped]
        say_json({"bank": args.out, **built.bank.info(), "skipped": skipped})
    else:
        say_table(_info_table(built.bank.info(), args.out))
        for _, reason in built.skipped[:20]:
            say(f"left out: {reason}")
        say(f"next: tinyalign bank search {args.out} --text WORDS --image FILE")
    return 0


def _seen(
    args: EncoderOptions, choose: Any = lambda samples: samples
) -> tuple[VisionEncoder, Sequence[Sample], Features, Any]:
    """(encoder, samples, their features, device): what both building verbs begin with."""
    from tinyalign.training.features import FeatureCache, default_cache_folder
    from tinyalign.training.parts import choose_device
    from tinyalign.training.sources import open_source

    device = choose_device(args.device)
    samples = choose(open_source(args, args.seed))
    encoder = _encoder(args.vision, device)
    cache = FeatureCache(args.cache_folder or default_cache_folder(), encoder)
    return encoder, samples, cache.cover(samples, strict=args.strict), device


def _encoder(name: str, device: Any) -> VisionEncoder:
    from tinyalign.model.vision import VisionEncoder

    encoder = VisionEncoder.load(name)
    encoder.tower.to(device)
    return encoder


def find_compressor(path: str | Path) -> Path:
    """The folder itself, or the compressor in a bank."""
    from tinyalign.memory.bank import COMPRESSOR

    inner = Path(path) / COMPRESSOR
    return inner if inner.is_dir() else Path(path)


# -- looking at banks --------------------------------------------------------------------------


@dataclass(kw_only=True)
class BankInfoArgs:
    """Arguments of `tinyalign bank info`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, or the folder of a run that used it."""
    verify: bool = False
    """Also read every byte and compare it with the hashes of the manifest."""
    json: bool = False
    """Print it as JSON."""


def bank_info(args: BankInfoArgs) -> int:
    """What a bank was made of and by, and how large it is."""
    from tinyalign.memory.opening import open_bank
    from tinyalign.serving.load import find_bank

    bank = open_bank(find_bank(args.bank)).bank
    if args.verify:
        bank.verify()
    if args.json:
        say_json({"bank": bank.folder, **bank.info(), "verified": args.verify})
    else:
        say_table(_info_table(bank.info(), str(bank.folder)))
        say("every byte is as it was committed" if args.verify else "--verify reads every byte")
    return 0


def _info_table(info: dict[str, Any], title: str) -> Any:
    rows = [
        ("entries", info["count"]),
        ("size", size(info["bytes"])),
        ("values", f"{info['n_latents']} x {info['d_latents']} {info['values_dtype']}"),
        ("keys", f"{info['key_dim']} {info['keys_dtype']}, {info['key_kind']}"),
        ("the image's share of a key", info["alpha"]),
        ("vision encoder", f"{info['vision_name'] or 'unnamed'} ({info['vision_hash']})"),
        ("compressor", info["compressor_hash"]),
        ("key function", info["key_hash"]),
        ("data set", info["dataset_hash"]),
        ("left out when built", info["build"].get("skipped", 0)),
        ("format", info["format_version"]),
        ("identity", info["hash"]),
    ]
    return facts(rows, title)


@dataclass(kw_only=True)
class BankSearchArgs:
    """Arguments of `tinyalign bank search`."""

    bank: str = field(metadata=POSITIONAL)
    """The bank's folder, the folder of a run that used it, or its Milvus URI."""
    image: str | None = None
    """An image to search by."""
    text: str | None = None
    """An instruction to search by, such as a question."""
    k: int = 5
    """How many memories to find."""
    vision: str | None = None
    """Vision encoder; by default the one that the bank names."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    json: bool = False
    """Print what was found as JSON."""


def bank_search(args: BankSearchArgs) -> int:
    """The memories nearest to an image, an instruction, or both, as a model's query finds them."""
    from tinyalign.data.images import load_image
    from tinyalign.data.sample import ImageRef
    from tinyalign.memory.opening import open_bank
    from tinyalign.memory.retriever import Retriever
    from tinyalign.serving.load import find_bank
    from tinyalign.training.parts import choose_device

    if args.image is None and args.text is None:
        raise ConfigError("nothing to search by; give --image FILE, --text WORDS, or both")
    if args.k < 1:
        raise ConfigError(f"--k must be at least 1, found {args.k}")
    device = choose_device(args.device)
    opened = open_bank(find_bank(args.bank))
    bank = opened.bank
    image = vision = None
    if args.image is not None:
        image = load_image(ImageRef(path=args.image))
        vision = _encoder(_vision_of(bank, args.vision), device)
    retriever = Retriever.open(bank, args.k, device=str(device), index=opened.index)
    hits = retriever.search(image, args.text, vision=vision)
    if args.json:
        found = [{"score": h.score, "row": h.row, **asdict(h.entry)} for h in hits]
        say_json({"bank": bank.folder, "k": args.k, "found": found})
    else:
        rows = [(h.score, h.entry.id, h.entry.text) for h in hits]
        say_table(columns(("similarity", "id", "text"), rows))
    if hits and all(abs(hit.score) < UNRELATED for hit in hits):
        logger.warning(
            "no key is anything like this search, so these are just some entries; %s keys know "
            "images and %s", bank.manifest.key_kind,
            "texts" if bank.manifest.key_kind == "aligned" else "instructions, but no answers",
        )  # fmt: skip
    return 0


def _vision_of(bank: Any, name: str | None) -> str:
    name = name or bank.manifest.vision_name
    if not name:
        raise BankError(f"{bank.folder}: does not say its vision encoder; name it with --vision")
    return name
