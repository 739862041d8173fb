"""What a recipe will take, before anything is downloaded or built: `estimate`.

Parameters and the bytes that follow from them are exact. What depends on the data is counted
where the data are on this disk, and otherwise left open unless the caller says how much there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError, DataError
from tinyalign.memory.bank.coding import KeyCoding, ValueCoding
from tinyalign.memory.keys.aligned import DIM
from tinyalign.memory.keys.fitting import IMAGE_WIDTH, TEXT_WIDTH
from tinyalign.model.device import choose_device
from tinyalign.model.perceiver import PerceiverNetworkConfig
from tinyalign.training.caches.features import STORED, default_cache_folder
from tinyalign.training.caches.plan import free_bytes
from tinyalign.training.estimate.meta_model import Outline, outline
from tinyalign.training.estimate.stage_ram import Batch, StepMemory, step_memory
from tinyalign.training.loop.arguments import planned_steps
from tinyalign.training.metering.flops import model_flops
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.memory import MemoryArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import memory_samples, open_source
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.weights.adapters import linear_weights
from tinyalign.training.weights.freeze import freeze
from tinyalign.training.weights.models import attention
from tinyalign.vocabulary import Stage

CHARACTERS_A_TOKEN = 4.0
"""Where the LLM's tokenizer is not on this disk."""
LOOKED_AT = 200
"""Samples whose texts are measured."""
TOKEN_BYTES = 8
"""An id and a label, int32 each; a run of placeholders counts as one."""
NEIGHBOUR_BYTES = 8
"""An int32 row and a float32 score."""


@dataclass(frozen=True)
class Amounts:
    """How much data a stage has. What is None is not known."""

    samples: int | None = None
    images: int | None = None
    text_tokens: float | None = None
    """A sample, without placeholders."""
    supervised_tokens: float | None = None
    """A sample."""

    def filled(self, said: Amounts) -> Amounts:
        """With what the caller said in place of what was counted."""
        stated = {name: value for name, value in vars(said).items() if value is not None}
        return replace(self, **stated)


@dataclass(frozen=True)
class Pace:
    """How fast it is expected to go. What is None is not said."""

    samples_per_second: float | None = None
    tflops: float | None = None
    """Peak of the device, in 10^12 operations a second."""
    mfu: float = 0.4
    """Share of the peak that training reaches."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage on one device."""

    stage: Stage
    memory: StepMemory
    micro_batch: int | None
    """Samples of mean length that the device computes at once."""
    samples: int | None
    steps: int | None
    tokens_a_sample: int | None
    tokens: int | None
    hours: float | None
    """At the samples a second that were said."""
    hours_by_peak: float | None
    """By the arithmetic and the device's peak."""


@dataclass(frozen=True)
class Size:
    """Something that is written to the disk."""

    name: str
    size: int | None
    """Bytes; None where not known."""
    of: str


@dataclass
class Estimate:
    """All of it, and what was taken for granted."""

    stages: list[StageEstimate]
    disk: list[Size]
    free_bytes: int
    """On the disk of the cache folder."""
    assumptions: list[str] = field(default_factory=list)


def estimate(recipe: Recipe, said: dict[Stage, Amounts], pace: Pace) -> Estimate:
    """Estimate a recipe's stages and caches.

    said: what is known of a stage's data, in place of what is counted. Raises ConfigError for a
    backbone whose sizes are unknown.
    """
    drawn = outline(recipe)
    notes: list[str] = []
    stages: list[StageEstimate] = []
    amounts: dict[Stage, Amounts] = {}
    for stage in _stages(recipe):
        amounts[stage] = _amounts(recipe, stage, drawn, notes).filled(said.get(stage, Amounts()))
        if amounts[stage].text_tokens is None:
            notes.append(
                f"{stage}: how long its texts are is unknown, and so are activations, logits, "
                "memory in all and tokens; say --text-tokens"
            )
        fresh = outline(recipe) if stages else drawn
        stages.append(_stage(recipe, stage, fresh, amounts[stage], pace))
    folder = Path(recipe.data.cache_folder or default_cache_folder())
    disk = _disk(recipe, drawn, list(amounts.values()))
    return Estimate(stages, disk, free_bytes(folder), list(dict.fromkeys(notes)))


def _stages(recipe: Recipe) -> list[Stage]:
    return ["pretrain"] if recipe.data.finetune is None else ["pretrain", "finetune"]


# -- data -----------------------------------------------------------------------------------------


def _amounts(recipe: Recipe, stage: Stage, drawn: Outline, notes: list[str]) -> Amounts:
    """Counted from the stage's data where these are on this disk; of a mixture all its parts."""
    source: DataSource = getattr(recipe.data, stage)
    found = [_amounts_of(part, recipe.seed, drawn, notes) for part in source.parts]
    if source.mixture is None:
        return found[0]
    weights = [part.weight for part in source.mixture]
    return Amounts(
        samples=_sum([each.samples for each in found]),
        images=_sum([each.images for each in found]),
        text_tokens=_weighted([each.text_tokens for each in found], weights),
        supervised_tokens=_weighted([each.supervised_tokens for each in found], weights),
    )


def _amounts_of(source: DataSource, seed: int, drawn: Outline, notes: list[str]) -> Amounts:
    try:
        samples = open_source(source, seed)
    except DataError:
        notes.append(f"{source.path} is not on this disk: say --samples to count with")
        return Amounts()
    step = max(1, len(samples) // LOOKED_AT)
    looked = [samples[i] for i in range(0, len(samples), step)]
    if drawn.tokenizer is None:
        notes.append(f"{CHARACTERS_A_TOKEN:g} characters a token: the tokenizer was not loaded")
    return Amounts(
        samples=len(samples),
        images=round(len(samples) * sum(len(s.images) for s in looked) / len(looked)),
        text_tokens=_mean([_tokens(_text(s, ("user", "assistant")), drawn) for s in looked]),
        supervised_tokens=_mean([_tokens(_text(s, ("assistant",)), drawn) for s in looked]),
    )


def _text(sample: Sample, roles: Sequence[str]) -> str:
    return " ".join(m.text for m in sample.messages if m.role in roles)


def _tokens(text: str, drawn: Outline) -> float:
    if drawn.tokenizer is None:
        return len(text) / CHARACTERS_A_TOKEN + 1
    return len(drawn.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _weighted(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Mean by share of the samples; None where one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(v * w for v, w in zip(known, weights)) / sum(weights)


# -- a stage --------------------------------------------------------------------------------------


def _stage(
    recipe: Recipe, stage: Stage, drawn: Outline, amounts: Amounts, pace: Pace
) -> StageEstimate:
    args: StageArgs = getattr(recipe, stage)
    model, device = drawn.model, choose_device(recipe.device)
    four_bit = _freeze(model, args)
    length, supervised = _lengths(recipe, model.config, amounts)
    micro = _micro_batch(args, length)
    memory = step_memory(
        model,
        None if length is None or micro is None else Batch(micro, length, supervised),
        dtype=getattr(torch, recipe.model.dtype),
        eager=attention(recipe.model, device) == "eager",
        checkpointing=args.gradient_checkpointing,
        cross_entropy=recipe.model.cross_entropy,
        four_bit=four_bit,
    )
    steps = args.max_steps
    if amounts.samples is not None:
        steps = planned_steps(args, amounts.samples)
    seen = _seen(args, amounts.samples, steps)
    return StageEstimate(
        stage=stage,
        memory=memory,
        micro_batch=micro,
        samples=seen,
        steps=steps,
        tokens_a_sample=None if length is None else round(length),
        tokens=None if seen is None or length is None else round(seen * length),
        hours=_hours(seen, pace.samples_per_second),
        hours_by_peak=_hours_by_peak(recipe, drawn, seen, length, supervised, pace),
    )


def _freeze(model: Any, args: StageArgs) -> list[Tensor]:
    """Freeze as the stage has it; returns the weights that it keeps in 4 bits.

    Shapes alone cannot be quantised, so that QLoRA is drawn as LoRA, without bitsandbytes.
    """
    if args.language != "qlora":
        freeze(model, args, tell=False)
        return []
    four_bit = linear_weights(model.model.language_model)
    freeze(model, replace(args, language="lora"), tell=False)
    return four_bit


def _lengths(recipe: Recipe, config: Any, amounts: Amounts) -> tuple[float | None, float]:
    """Tokens of a mean sample, None where its text is not known, and supervised ones of them."""
    text = amounts.text_tokens
    if text is None:
        return None, 0.0
    placeholders = config.image_seq_length * _images_a_sample(amounts) + config.n_memory_tokens
    length = min(recipe.data.max_length, placeholders + text)
    return length, min(amounts.supervised_tokens or text, length)


def _micro_batch(args: StageArgs, length: float | None) -> int | None:
    """Samples of `length` tokens that one device computes at once; None where that hangs on a
    length that is not known."""
    if args.micro_tokens is None:
        return args.accumulation(1)[0]
    if length is None:
        return None
    return max(1, min(args.batch_size, int(args.micro_tokens // length)))


def _images_a_sample(amounts: Amounts) -> float:
    if amounts.samples is None or amounts.images is None:
        return 1.0
    return amounts.images / max(1, amounts.samples)


def _seen(args: StageArgs, samples: int | None, steps: int | None) -> int | None:
    if args.max_steps is None and samples is not None:
        return round(args.epochs * samples)
    return None if steps is None else steps * args.batch_size


def _hours(samples: int | None, per_second: float | None) -> float | None:
    return None if samples is None or not per_second else samples / per_second / 3600


def _hours_by_peak(
    recipe: Recipe,
    drawn: Outline,
    seen: int | None,
    length: float | None,
    supervised: float,
    pace: Pace,
) -> float | None:
    if seen is None or length is None or pace.tflops is None:
        return None
    flops = seen * flops_a_sample(recipe, drawn, length, supervised)
    return flops / (pace.tflops * 1e12 * pace.mfu) / 3600


def flops_a_sample(recipe: Recipe, drawn: Outline, length: float, supervised: float) -> float:
    """Operations of one sample with one image, forward and backward, as `model_flops` counts."""
    flops = model_flops(drawn.model, cached=recipe.data.cache in ("auto", "features"))
    return flops.token * length + flops.supervised * supervised + flops.image + flops.memory


# -- disk -----------------------------------------------------------------------------------------


def _disk(recipe: Recipe, drawn: Outline, amounts: Sequence[Amounts]) -> list[Size]:
    images = _sum([each.images if each.images is not None else each.samples for each in amounts])
    samples = _sum([each.samples for each in amounts])
    n, width = drawn.feature_shape
    size = drawn.model.config.vision_config.image_size
    height, across = (size, size) if isinstance(size, int) else tuple(size)
    row = n * width * STORED[recipe.data.cache_dtype][0].itemsize
    text = _sum([_text_tokens(each) for each in amounts])
    tokens = None if text is None or samples is None else round(TOKEN_BYTES * (text + 3 * samples))
    found = [
        Size("features", _times(images, row), f"{n} x {width} {recipe.data.cache_dtype} an image"),
        Size("pixels", _times(images, 3 * height * across), f"3 x {height} x {across} bytes"),
        Size("tokens", tokens, f"{TOKEN_BYTES} bytes a token, placeholders folded"),
    ]
    if recipe.memory.reads_bank:
        found += _memory_sizes(recipe, width, samples)
    return found


def _text_tokens(amounts: Amounts) -> float | None:
    """Of all samples."""
    if amounts.samples is None or amounts.text_tokens is None:
        return None
    return amounts.samples * amounts.text_tokens


def _memory_sizes(recipe: Recipe, feature_width: int, samples: int | None) -> list[Size]:
    memory = recipe.memory
    entries = _entries(recipe)
    keys = KeyCoding(memory.bank.keys_dtype, key_width(memory, feature_width)).record.itemsize
    shape = PerceiverNetworkConfig()
    record = ValueCoding(
        memory.bank.values_dtype, shape.num_latents, shape.d_latents
    ).record.itemsize
    columns = memory.ranking.neighbours
    told = "entries" if entries is None else f"{entries:,} entries"
    return [
        Size("bank", _times(entries, keys + record), f"{told} of {keys} + {record} bytes"),
        Size("neighbours", _times(samples, columns * NEIGHBOUR_BYTES), f"{columns} a sample"),
    ]


def key_width(memory: MemoryArgs, feature_width: int) -> int:
    """d_k of a recipe's key function; of aligned and joint ones at most: a small corpus has less,
    and one without questions has no part for them."""
    words = min(DIM, memory.perceiver.vocab_size)
    if memory.key.kind == "aligned":
        return words
    if memory.key.kind == "joint":
        return 2 * words + min(IMAGE_WIDTH, feature_width)
    if memory.key.kind == "attention":
        return feature_width
    image, text = min(IMAGE_WIDTH, feature_width), TEXT_WIDTH
    alpha = memory.key.alpha
    return image if alpha == 1.0 else text if alpha == 0.0 else image + text


def _entries(recipe: Recipe) -> int | None:
    """Entries of the bank; the limit of the recipe where the data are not here."""
    try:
        return len(memory_samples(recipe.memory, recipe.data.pretrain))
    except DataError:
        return recipe.memory.bank.entries


def _sum(values: Sequence[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known)) if len(known) == len(values) else None


def _times(count: int | None, size: int) -> int | None:
    return None if count is None else count * size


def amounts_said(
    samples: int | None, finetune_samples: int | None, text_tokens: float | None
) -> dict[Stage, Amounts]:
    """What a caller says of the data. ConfigError for a number that is not positive."""
    for value in (samples, finetune_samples, text_tokens):
        if value is not None and value <= 0:
            raise ConfigError(
                f"numbers of samples and of text tokens must be positive, found {value}"
            )
    return {
        "pretrain": Amounts(samples, samples, text_tokens, None),
        "finetune": Amounts(finetune_samples, finetune_samples, text_tokens, None),
    }
