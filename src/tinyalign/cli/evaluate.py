"""`tinyalign evaluate`: how good a model is, with intervals and every prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from tinyalign.cli.options import DataOptions
from tinyalign.cli.output import columns, say, say_json, say_table
from tinyalign.errors import ConfigError
from tinyalign.training.recipe import DataSource

if TYPE_CHECKING:
    from tinyalign.evaluation.runner import Evaluation


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
    """Results file (.json) or its folder; predictions.jsonl goes beside it. A run that was
    stopped goes on where it was."""
    resume: bool = True
    """Go on from what lies in --out; --no-resume drops it and starts over."""
    split: str = "test"
    """The split, where a data set has several."""
    memory: Literal["on", "off", "shuffled", "random"] = "on"
    """With a bank: show what the search finds, nothing, what it finds in a bank whose values
    were dealt out anew, or memories drawn at random."""
    no_image: bool = False
    """Leave the image out of the prompt, and the memories with it: what the text gives away."""
    rows: Literal["all"] | None = None
    """"all" runs memory on, off, shuffled, and text without image, each in a folder of its own
    in --out, and prints them in one table."""
    k: int | None = None
    """Memories a sample; by default the model's own."""
    shard: str | None = None
    """I/N: judge the I-th of N parts; the last shard to finish in the same --out joins them."""
    batch_size: int = 16
    """Samples at once; changes no prediction."""
    max_new_tokens: int | None = None
    """Tokens an answer may have, by default enough for the task; 0 measures the loss alone."""
    seed: int = 0
    """Of the bootstrap, of drawn captions, and of shuffled and random memories."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it."""
    json: bool = False
    """Print the results as JSON instead."""


def evaluate(args: EvaluateArgs) -> int:
    """Judge a model on held-out samples, greedily, each number with its 95 % interval.

    A memory of the judged image itself is never shown to the model. Started by torchrun or
    `accelerate launch`, every process judges a share.
    """
    from tinyalign.evaluation.shards import join_ranks, leave_ranks, rank

    _check(args)
    join_ranks()
    try:
        found = _run(args)
        if rank() == 0:
            _tell(args, found)
    finally:
        leave_ranks()
    return 0


def _run(args: EvaluateArgs) -> dict[str, Evaluation]:
    """What was found, by the row's name; of one row alone by the task's."""
    from tinyalign.evaluation.rows import evaluate_rows, with_mode
    from tinyalign.evaluation.runner import evaluate as judge
    from tinyalign.evaluation.shards import Shard, local_device
    from tinyalign.serving.load import load
    from tinyalign.training.sources import open_source

    shard = None if args.shard is None else Shard.parse(args.shard)
    samples = open_source(args, args.seed)
    loaded = load(args.model, args.bank, k=args.k, device=local_device(args.device))
    settings: dict[str, Any] = {
        "task": args.task,
        "out": args.out,
        "seed": args.seed,
        "shard": shard,
        "resume": args.resume,
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "strict": args.strict,
        "model_name": args.model,
        "data": {each.name: getattr(args, each.name) for each in fields(DataSource)},
    }
    judged = loaded.model, loaded.processor, samples
    if args.rows == "all":
        return evaluate_rows(*judged, retriever=loaded.retriever, **settings)
    retriever = with_mode(loaded.retriever, args.memory, args.seed)
    return {
        args.task: judge(*judged, retriever=retriever, show_image=not args.no_image, **settings)
    }


def _tell(args: EvaluateArgs, found: Mapping[str, Evaluation]) -> None:
    from tinyalign.evaluation.results import results_path

    missing = max(one.missing for one in found.values())
    if args.json:
        values = {name: one.results.as_dict() for name, one in found.items()}
        say_json(values if args.rows else values[args.task])
    elif missing:
        say(f"shard {args.shard}: done; other shards have {missing} samples still to judge")
    elif args.rows:
        _tell_rows(found)
        say(f"results: {args.out}")
    else:
        out = results_path(args.out)
        _tell_one(args.task, found[args.task])
        say(f"results:     {out}")
        say(f"predictions: {out.parent / 'predictions.jsonl'}")


def _tell_one(task: str, found: Evaluation) -> None:
    rows = [(name, m.value, m.low, m.high) for name, m in found.results.metrics.items()]
    say_table(columns((f"{task}: {found.results.n} samples", "value", "95 % from", "to"), rows))
    if found.results.skipped:
        say(f"{len(found.results.skipped)} samples could not be judged; the results list them")


def _tell_rows(found: Mapping[str, Evaluation]) -> None:
    """A table for each metric: every row, and by how much memory on differs from it."""
    from tinyalign.evaluation.comparison import compare, paired_metrics

    on = found["on"]
    paired = paired_metrics(on.predictions)
    for name in on.results.metrics:
        lines: list[list[Any]] = []
        for row, one in found.items():
            value = one.results.metrics[name]
            line: list[Any] = [row, value.value, f"{value.low:.4f} to {value.high:.4f}"]
            if name in paired and row != "on":
                difference = compare([on.predictions], [one.predictions], name)
                line += [
                    f"{difference.value:+.4f}",
                    f"{difference.low:+.4f} to {difference.high:+.4f}",
                ]
            lines.append(line + [""] * (5 - len(line)))
        head = (f"memory ({on.results.n} samples)", name, "95 %", "on minus this", "95 %, paired")
        say_table(columns(head, lines))


def _check(args: EvaluateArgs) -> None:
    """Say now what would be a pity to find out after hours."""
    from tinyalign.evaluation.results import refuse_unknown, results_path

    for name, least in (("batch_size", 1), ("max_new_tokens", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, found {value}")
    if args.bank is None and args.memory in ("shuffled", "random"):
        raise ConfigError(f"--memory {args.memory} needs a --bank that memories come from")
    if args.rows and args.bank is None:
        raise ConfigError("--rows all compares a memory with none: it needs a --bank")
    if args.rows and (args.no_image or args.memory != "on"):
        raise ConfigError("--rows all sets --memory and --no-image itself; leave them out")
    if args.rows and args.out.endswith(".json"):
        raise ConfigError(f"--rows all writes several results: --out {args.out} must be a folder")
    if args.resume and not args.rows:
        refuse_unknown(results_path(args.out))
