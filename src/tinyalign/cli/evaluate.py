"""`tinyalign evaluate`: how good a model is, with intervals and every prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyalign.cli.options import DataOptions
from tinyalign.cli.output import columns, say, say_json, say_table
from tinyalign.errors import ConfigError


@dataclass(kw_only=True)
class EvaluateArgs(DataOptions):
    """Arguments of `tinyalign evaluate`."""

    model: str
    """A model's folder, or a run folder."""
    bank: str | None = None
    """A memory bank's folder or Milvus URI, or a run folder, whose bank is taken; without it the
    model runs without memory."""
    task: Literal["caption", "vqa", "easy_vqa"]
    """What to measure: loss, CIDEr and BLEU-4 of captions, or loss and accuracy of answers."""
    out: str
    """Results file (.json) or its folder; predictions.jsonl goes beside it."""
    split: str = "test"
    """The split, where a data set has several."""
    k: int | None = None
    """Memories a sample; by default the model's own."""
    random_memories: bool = False
    """Take memories at random instead of those found: the control."""
    batch_size: int = 16
    """Samples at once."""
    max_new_tokens: int | None = None
    """Tokens an answer may have, by default enough for the task; 0 measures the loss alone."""
    seed: int = 0
    """Of the bootstrap, of drawn captions and of random memories."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it."""
    json: bool = False
    """Print the results as JSON, too."""


def evaluate(args: EvaluateArgs) -> int:
    """Judge a model on held-out samples, greedily, each number with its 95 % interval.

    A memory of the judged image itself is never shown to the model.
    """
    from tinyalign.evaluation.controls import RandomMemories
    from tinyalign.evaluation.results import results_path
    from tinyalign.evaluation.runner import evaluate as judge
    from tinyalign.serving.load import load
    from tinyalign.training.sources import open_source

    out = results_path(args.out)
    _check(args, out)
    samples = open_source(args, args.seed)
    loaded = load(args.model, args.bank, k=args.k, device=args.device)
    retriever: Any = loaded.retriever
    if args.random_memories:
        retriever = RandomMemories(retriever, args.seed)
    found = judge(
        loaded.model,
        loaded.processor,
        samples,
        task=args.task,
        retriever=retriever,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        out=out,
        strict=args.strict,
        model_name=args.model,
    )
    if args.json:
        say_json(found.results.as_dict())
        return 0
    rows = [(name, m.value, m.low, m.high) for name, m in found.results.metrics.items()]
    title = f"{args.task}: {found.results.n} samples"
    say_table(columns((title, "value", "95 % from", "to"), rows))
    if found.results.skipped:
        say(f"{len(found.results.skipped)} samples could not be judged; {out} lists them")
    say(f"results:     {out}")
    say(f"predictions: {out.parent / 'predictions.jsonl'}")
    return 0


def _check(args: EvaluateArgs, out: Path) -> None:
    """Say now what would be a pity to find out after hours."""
    from tinyalign.evaluation.results import PREDICTIONS

    for name, least in (("batch_size", 1), ("max_new_tokens", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, found {value}")
    if args.random_memories and args.bank is None:
        raise ConfigError("--random-memories needs a --bank to draw them from")
    if (out.parent / PREDICTIONS).is_file() and not out.is_file():
        raise ConfigError(
            f"{out.parent / PREDICTIONS}: belongs to another evaluation in this folder and would "
            "be lost; give each evaluation a folder of its own"
        )
