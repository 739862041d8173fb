"""`tinyalign quickstart`: the whole method on small real models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tinyalign.cli.front.output import say_json
from tinyalign.errors import ConfigError


@dataclass(kw_only=True)
class QuickstartArgs:
    """Arguments of `tinyalign quickstart`."""

    out: str = "quickstart"
    """Folder for models, banks, tables and pictures."""
    minutes: float = 20
    """Time to stay within on two CPU cores; less time means shorter training."""
    seed: int = 0
    """Of every random draw."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    json: bool = False
    """Print the content of summary.json instead."""


def quickstart(args: QuickstartArgs) -> int:
    """Train SmolLM2-135M with EfficientNet-Lite on easy-VQA, with memory and without, and compare.

    Needs nothing but packages. Ends with a table, the loss curves, a sheet of test images with
    both models' answers, and three commands to try next.
    """
    if args.minutes <= 0:
        raise ConfigError(f"--minutes must be positive, found {args.minutes}")
    from tinyalign.quickstart import SUMMARY, run

    out = run(
        out=Path(args.out),
        minutes=args.minutes,
        seed=args.seed,
        device=args.device,
        tell=not args.json,
    )
    if args.json:
        say_json(json.loads((out / SUMMARY).read_text(encoding="utf-8")))
    return 0
