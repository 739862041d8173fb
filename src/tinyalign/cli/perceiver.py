"""`tinyalign perceiver`: training what makes memories of pairs."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tinyalign.cli.bank.encoder_options import EncoderOptions, cached_features, load_encoder
from tinyalign.cli.front.options import repeated
from tinyalign.cli.front.output import facts, percent, say, say_json, say_table
from tinyalign.errors import ConfigError
from tinyalign.training.recipe.memory import PerceiverTraining
from tinyalign.vocabulary import CaptionChoice, KeyKind


@dataclass(kw_only=True)
class PerceiverTrainArgs(PerceiverTraining, EncoderOptions):
    """Arguments of `tinyalign perceiver train`."""

    captions: CaptionChoice = "all"
    """Of several captions of an image: each of them here, where `bank build` takes the first unless
    told otherwise."""
    key: KeyKind = "pooled"
    """Key function that is fitted along with it and decides what a search finds. "pooled": image
    features beside the instruction's words. "attention": the paper's. "aligned": entries by their
    text, queries by what their image should say. "joint": aligned, and image with image beside
    it."""
    alpha: float = 0.4
    """The image's share of a pooled, attention or joint key."""
    overwrite: bool = False
    """Replace a Perceiver that is in the folder already."""


def perceiver_train(args: PerceiverTrainArgs) -> int:
    """Train a Perceiver on pairs, with its tokenizer and its key function.

    Self-supervised, with no language model in sight: an image and a text go in, and both must be
    readable from the 32 latents, the text linearly. What was read back on images that were not
    trained on is printed at the end.
    """
    from tinyalign.model.device import choose_device
    from tinyalign.training.perceiver.train import REPORT, train_perceiver
    from tinyalign.training.recipe.sources import open_source

    if (Path(args.out) / REPORT).is_file() and not args.overwrite:
        raise ConfigError(
            f"{args.out}: holds a Perceiver already; choose another --out, or give --overwrite"
        )
    device = choose_device(args.device)
    samples = open_source(args, args.seed, strict=args.strict)
    encoder = load_encoder(args.vision, device, args.dtype)
    features = cached_features(args, encoder, samples)
    settings = PerceiverTraining(
        **{f.name: getattr(args, f.name) for f in fields(PerceiverTraining)}
    )
    train_perceiver(
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
        say(f"perceiver: {args.out}")
        again = repeated(args, ("path", "format", "image_folder", "split", "prompt", "vision"))
        say(f"next: tinyalign bank build {again} --perceiver {args.out} --out BANK")
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
