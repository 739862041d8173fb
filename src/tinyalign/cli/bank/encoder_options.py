"""What verbs that look at images share: their options, the encoder, and where its features are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyalign.cli.front.options import DataOptions
from tinyalign.errors import BankError

if TYPE_CHECKING:
    from tinyalign.data.sample import Sample
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.model.backbones.vision import VisionEncoder
    from tinyalign.training.caches.features import Features


@dataclass(kw_only=True)
class EncoderOptions(DataOptions):
    """Pairs, and the frozen encoder that looks at their images."""

    out: str
    """Folder to write."""
    vision: str = "efficientnet-lite2"
    """Vision encoder: a hub id, a folder, or a packaged name. It must be the model's."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision that the encoder computes in; models run theirs in bfloat16 by default."""
    cache_folder: str | None = None
    """Where vision features are kept for the next time; by default $TINYALIGN_CACHE, or
    ~/.cache/tinyalign."""
    workers: int = 0
    """Processes that decode images, for each process that is launched; 0 decodes in between."""
    seed: int = 0
    """Of every random draw."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it."""
    json: bool = False
    """Print the report as JSON."""


def cached_features(
    args: EncoderOptions, encoder: VisionEncoder, samples: Sequence[Sample]
) -> Features:
    """Features of the samples from the cache folder; what is missing there is computed now."""
    from tinyalign.training.caches.features import FeatureCache, default_cache_folder

    cache = FeatureCache(args.cache_folder or default_cache_folder(), encoder)
    return cache.cover(samples, strict=args.strict, workers=args.workers)


def load_encoder(name: str, device: Any, dtype: str = "bfloat16") -> VisionEncoder:
    """The vision encoder of that name, on the device."""
    import torch

    from tinyalign.model.backbones.vision import VisionEncoder

    encoder = VisionEncoder.load(name, dtype=getattr(torch, dtype))
    encoder.tower.to(device)
    return encoder


def bank_encoder(bank: MemoryBank, name: str | None, device: Any) -> VisionEncoder:
    """The encoder of that name, by default the one that the bank was made with.

    Raises BankError if it is another one than the bank's, or the bank does not say which it is.
    """
    from tinyalign.memory.search.retriever import check_encoder

    name = name or bank.manifest.vision_name
    if not name:
        raise BankError(f"{bank.folder}: does not say its vision encoder; name it with --vision")
    encoder = load_encoder(name, device)
    check_encoder(bank, encoder.hash)
    return encoder


def find_perceiver(path: str | Path) -> Path:
    """The folder itself, or the Perceiver in a bank."""
    from tinyalign.memory.bank.bank import PERCEIVER_FOLDER

    inner = Path(path) / PERCEIVER_FOLDER
    return inner if inner.is_dir() else Path(path)


def skipped_list(skipped: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Samples that were left out, for JSON."""
    return [{"id": name, "reason": reason} for name, reason in skipped]


def say_skipped(skipped: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """The first of the samples that were left out, for people."""
    for _, reason in skipped[:20]:
        say(f"left out: {reason}")
    if len(skipped) > 20:
        say(f"and {len(skipped) - 20} more; --json lists them all")
