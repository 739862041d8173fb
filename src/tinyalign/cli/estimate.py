"""`tinyalign estimate`: what a recipe will take, before anything is downloaded or built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tinyalign.cli.front.options import REST
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table, size

if TYPE_CHECKING:
    from tinyalign.training.estimate.estimate import Estimate, StageEstimate


@dataclass(kw_only=True)
class EstimateArgs:
    """Arguments of `tinyalign estimate`, besides the recipe's own."""

    config: str
    """A recipe: a YAML file, or the name of one that `tinyalign recipes list` shows."""
    samples: int | None = None
    """Samples of stage 1; by default counted, where the data are on this disk."""
    finetune_samples: int | None = None
    """Samples of stage 2; by default counted."""
    text_tokens: float | None = None
    """Text tokens a sample; by default measured on some of them."""
    samples_per_second: float | None = None
    """Samples a second that training is expected to reach; gives the hours."""
    tflops: float | None = None
    """Peak of the device in TFLOP/s; gives the hours by arithmetic."""
    mfu: float = 0.4
    """Share of that peak that training reaches."""
    json: bool = False
    """Print everything as JSON, in bytes."""
    overrides: list[str] = field(default_factory=list, metadata=REST)
    """Any field of the recipe by its dotted name: --memory.k 0."""


def estimate(args: EstimateArgs) -> int:
    """Parameters, memory, caches and hours of a recipe; nothing is downloaded or built.

    Every field of the recipe is an option too, as for `tinyalign train`.
    """
    from tinyalign.training.estimate.estimate import Pace, amounts_said
    from tinyalign.training.estimate.estimate import estimate as run
    from tinyalign.training.recipe.files import load_recipe

    recipe = load_recipe(args.config, args.overrides)
    said = amounts_said(args.samples, args.finetune_samples, args.text_tokens)
    found = run(recipe, said, Pace(args.samples_per_second, args.tflops, args.mfu))
    if args.json:
        say_json(_plain(found))
        return 0
    for stage in found.stages:
        _show(stage, args)
    rows = [(each.name, _size(each.size), each.of) for each in found.disk]
    say_table(columns(("on the disk", "size", "of"), rows, title="caches"))
    say(f"free on that disk: {size(found.free_bytes)}")
    for note in found.assumptions:
        say(f"note: {note}")
    return 0


def _show(stage: StageEstimate, args: EstimateArgs) -> None:
    memory = stage.memory
    heads = ("part", "trained", "frozen", "dtype", "weights", "gradients", "AdamW")
    rows = [
        (
            part.name, f"{part.trained:,}", f"{part.frozen:,}", part.dtype,
            size(part.weights), size(part.gradients), size(part.optimizer),
        )
        for part in memory.parts
    ]  # fmt: skip
    say_table(columns(heads, rows, title=stage.stage))
    batch = f"{_number(stage.micro_batch)} samples of {_number(stage.tokens_a_sample)} tokens"
    say_table(
        facts(
            [
                ("working copies of trained weights", size(memory.working_copies)),
                (f"activations, about ({batch})", _size(memory.activations)),
                ("logits of supervised tokens, about", _size(memory.logits)),
                ("memory in all, about", _size(memory.total)),
                ("steps", _number(stage.steps)),
                ("samples", _number(stage.samples)),
                ("tokens", _number(stage.tokens)),
                (
                    "hours at the given samples a second",
                    _hours(stage.hours, args.samples_per_second),
                ),
                ("hours by the device's peak", _hours(stage.hours_by_peak, args.tflops)),
            ]
        )
    )


def _plain(found: Estimate) -> dict[str, Any]:
    value = asdict(found)
    for stage, each in zip(value["stages"], found.stages):
        stage["memory"]["total"] = each.memory.total
    return value


def _size(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else size(n_bytes)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _hours(value: float | None, asked: float | None) -> str:
    if asked is None:
        return "not asked for"
    return "unknown" if value is None else f"{value:.2f}"
