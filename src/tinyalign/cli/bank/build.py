"""`tinyalign bank build`: from pairs to memories, in one process or in many."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from tinyalign.cli.bank.encoder_options import (
    EncoderOptions,
    cached_features,
    find_perceiver,
    load_encoder,
    say_skipped,
    skipped_list,
)
from tinyalign.cli.bank.look import info_table
from tinyalign.cli.front.output import say, say_json, say_table
from tinyalign.log import logger
from tinyalign.vocabulary import KeysDtype, ValuesDtype


@dataclass(kw_only=True)
class BankBuildArgs(EncoderOptions):
    """Arguments of `tinyalign bank build`."""

    perceiver: str
    """Folder of `tinyalign perceiver train`, or a bank, whose Perceiver is used again."""
    entries: int | None = None
    """At most so many pairs, drawn with the seed; all by default."""
    batch_size: int = 32
    """Pairs encoded at once."""
    keys_dtype: KeysDtype = "float16"
    """How keys are stored."""
    values_dtype: ValuesDtype = "int8"
    """How values are stored: int8 with a scale a latent takes half the room of float16."""
    cache: bool = True
    """Keep vision features in the cache folder, for a training that needs them later. With
    --no-cache they are made and dropped batch by batch, as several processes always do."""


def bank_build(args: BankBuildArgs) -> int:
    """Turn pairs into a memory bank: a key to find each by, and 32 latents to remember it by.

    A build that was interrupted goes on when the same command is given again. Under `accelerate
    launch` or `torchrun` each process makes a part, and the first puts them together; the bank is
    the one that a single process makes with --no-cache, byte by byte.
    """
    from tinyalign.memory.building.builder import BuildPart, build_bank
    from tinyalign.memory.building.writer import check_vacant
    from tinyalign.memory.perceiver import Perceiver
    from tinyalign.training.recipe.sources import draw, open_source

    check_vacant(args.out)  # before any image is encoded
    share = BuildPart.of_launch()
    if share.index:
        logger.setLevel(logging.WARNING)  # the first process speaks for all
    device = _device(args.device)
    perceiver = Perceiver.load(find_perceiver(args.perceiver))
    samples = draw(open_source(args, args.seed, strict=args.strict), args.entries, args.seed)
    encoder = load_encoder(args.vision, device, args.dtype)
    cached = args.cache and share.count == 1
    built = build_bank(
        samples,
        encoder,
        perceiver.to(device),
        args.out,
        batch_size=args.batch_size,
        features=cached_features(args, encoder, samples) if cached else None,
        vision_name=args.vision,
        strict=args.strict,
        keys_dtype=args.keys_dtype,
        values_dtype=args.values_dtype,
        workers=args.workers,
        share=share,
    )
    if share.index:
        return 0
    if args.json:
        skipped = skipped_list(built.skipped)
        say_json({"bank": args.out, **built.bank.info(), "skipped": skipped})
    else:
        say_table(info_table(built.bank.info(), args.out))
        say_skipped(built.skipped, say)
        say(f"next: tinyalign bank search {args.out} --text WORDS --image FILE")
    return 0


def _device(name: str) -> Any:
    """The device asked for; where several processes build, each one's own GPU."""
    from accelerate import PartialState

    from tinyalign.model.device import choose_device

    device = choose_device(name)
    launched = "RANK" in os.environ and device.type == "cuda" and device.index is None
    return PartialState().device if launched else device
