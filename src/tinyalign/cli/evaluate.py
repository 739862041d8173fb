"""`tinyalign evaluate`: how good a model is, with intervals and every prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from tinyalign.cli.evaluate_benchmark import (
    BenchmarkOptions,
    about,
    check_untouched,
    open_benchmark,
)
from tinyalign.cli.front.options import NAME, DataOptions
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table
from tinyalign.cli.lmms_eval import evaluate_lmms_eval
from tinyalign.cli.search_options import SearchOptions
from tinyalign.cli.unread_question import warn_of_unread_question
from tinyalign.errors import ConfigError
from tinyalign.log import logger
from tinyalign.training.recipe.recipe import RECIPE_ONLY, DataSource

if TYPE_CHECKING:
    from tinyalign.data.sample import Sample
    from tinyalign.evaluation.contamination import Contamination
    from tinyalign.evaluation.metrics.intervals import Interval
    from tinyalign.evaluation.running.runner import Evaluation

TASK_ONLY = ("format", "image_folder", "split", "prompt", "captions")
"""Options that say how a data set of --task is read."""
WITHOUT_QUESTION = ("caption", "captions")
"""The task and the benchmark in which a model is asked for nothing but a caption."""


@dataclass(kw_only=True)
class EvaluateArgs(BenchmarkOptions, SearchOptions, DataOptions):
    """Arguments of `tinyalign evaluate`."""

    model: str
    """A model's folder, or a run folder."""
    bank: str | None = None
    """A memory bank's folder or Milvus URI, or a run folder, whose bank is taken; without it the
    model runs without memory."""
    task: Literal["caption", "vqa", "easy_vqa"] | None = None
    """What to measure on data of your own: loss, CIDEr and BLEU-4 of captions, or loss and
    accuracy of answers."""
    benchmark: str | None = None
    """What to measure instead of a task: gqa, vqav2, textvqa, pope, scienceqa, mmmu, mme, mm-vet,
    containment, captions, easy-vqa or daquar, by its official rule."""
    lmms_eval: str | None = None
    """What to measure instead: a task of lmms-eval, by its own prompts and rules. Needs the extra
    lmms-eval."""
    include_path: str | None = None
    """Of lmms-eval: a folder with task files of your own."""
    path: str = field(default="", metadata={NAME: "data"})
    """Of a task: a file, folder or glob, or the name "easy_vqa". Of a benchmark: its official
    files, or their Hugging Face id."""
    images: str | None = None
    """Of a benchmark: its folder of images, if not where the official download has it."""
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
    """Samples at once; in float32 no prediction depends on it."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of tower and LLM, by default as saved. In bfloat16 an answer on the very edge can
    tip with the batch size."""
    max_new_tokens: int | None = None
    """Tokens an answer may have, by default enough for the task; 0 measures the loss alone."""
    loss: bool = True
    """Also measure the loss of the right answers; --no-loss takes about half the time."""
    seed: int = 0
    """Of the bootstrap, of drawn captions, and of shuffled and random memories."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Refuse to judge what was in the bank or in --train-data, and stop at the first unusable
    sample, instead of saying so in the results."""
    train_data: str | None = None
    """Also look for the judged images in this data set: what the model was trained on."""
    json: bool = False
    """Print the results as JSON instead."""


def evaluate(args: EvaluateArgs) -> int:
    """Judge a model on held-out samples, greedily, each number with its 95 % interval.

    A memory of the judged image itself is never shown to the model. Started by torchrun or
    `accelerate launch`, every process judges a share.
    """
    from tinyalign.evaluation.running.shards import join_ranks, leave_ranks, rank

    if args.lmms_eval is not None:
        return evaluate_lmms_eval(args)
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
    """What was found, by the row's name; of one row alone by what was measured."""
    from tinyalign.evaluation.controls.rows import evaluate_rows, with_mode
    from tinyalign.evaluation.running.runner import evaluate as judge
    from tinyalign.evaluation.running.shards import Shard, local_device, rank
    from tinyalign.serving.load import load

    shard = None if args.shard is None else Shard.parse(args.shard)
    samples, settings = _asked(args)
    loaded = load(
        args.model, args.bank, k=args.k, device=local_device(args.device), dtype=args.dtype,
        engine=args.engine, recall=args.recall,
    )  # fmt: skip
    if rank() == 0 and _measured(args) not in WITHOUT_QUESTION:
        warn_of_unread_question(loaded.processor)
    settings |= {
        "out": args.out,
        "seed": args.seed,
        "shard": shard,
        "resume": args.resume,
        "batch_size": args.batch_size,
        "strict": args.strict,
        "loss": args.loss,
        "model_name": args.model,
    }
    if args.max_new_tokens is not None:
        settings["max_new_tokens"] = args.max_new_tokens
    judged = loaded.model, loaded.processor, samples
    if args.rows == "all":
        return evaluate_rows(*judged, retriever=loaded.retriever, **settings)
    retriever = with_mode(loaded.retriever, args.memory, args.seed)
    found = judge(*judged, retriever=retriever, show_image=not args.no_image, **settings)
    return {_measured(args): found}


def _asked(args: EvaluateArgs) -> tuple[Sequence[Sample], dict[str, Any]]:
    """The samples of the task or benchmark, and what the runner must know of them."""
    from tinyalign.evaluation.benchmarks.asking import prepare
    from tinyalign.training.recipe.sources import open_source

    if args.benchmark is None:
        samples = open_source(args, args.seed)
        own = [each.name for each in fields(DataSource) if each.metadata != RECIPE_ONLY]
        data = {name: getattr(args, name) for name in own}
        contamination = _contamination(args, samples)
        return samples, {"task": args.task, "data": data, "contamination": contamination}
    benchmark = open_benchmark(args.benchmark, args)
    asking = prepare(
        benchmark,
        args.path,
        benchmark.protocol(args.protocol, args.ocr),
        images=args.images,
        limit=args.limit,
        missing=args.missing,
        seed=args.seed,
    )
    contamination = _contamination(args, asking.samples)
    asking.check_readable(contamination.unreadable)
    data = {"path": args.path, "image_folder": args.images, "limit": args.limit}
    return asking.samples, {
        **asking.for_runner(), "data": data, "contamination": contamination
    }  # fmt: skip


def _contamination(args: EvaluateArgs, samples: Sequence[Sample]) -> Contamination:
    """The samples' overlap with bank and training data; with --strict there must be none."""
    from tinyalign.evaluation.contamination import Contamination, find_contamination
    from tinyalign.evaluation.running.shards import gather, rank
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.serving.load import find_bank
    from tinyalign.training.caches.features import default_cache_folder
    from tinyalign.training.recipe.sources import open_source

    if args.bank is None and args.train_data is None and args.benchmark is None:
        return Contamination()
    found: Contamination | None = None
    if rank() == 0:
        train = args.train_data and open_source(DataSource(path=args.train_data), args.seed)
        found = find_contamination(
            samples,
            bank=None if args.bank is None else MemoryBank.open(find_bank(args.bank)),
            train=train or None,
            cache=default_cache_folder() / "image-hashes",
        )
    found = gather(found)[0]
    assert found is not None
    if args.strict:
        found.refuse()
    if found.contaminated and rank() == 0:
        logger.warning("what is judged was seen before: %s", found.line)
    return found


def _measured(args: EvaluateArgs) -> str:
    return args.benchmark or args.task or ""


def _tell(args: EvaluateArgs, found: Mapping[str, Evaluation]) -> None:
    from tinyalign.evaluation.results import results_path

    missing = max(one.missing for one in found.values())
    if args.json:
        values = {name: one.results.as_dict() for name, one in found.items()}
        say_json(values if args.rows else values[_measured(args)])
    elif missing:
        say(f"shard {args.shard}: done; other shards have {missing} samples still to judge")
    elif args.rows:
        _tell_rows(found)
        _tell_about(found["on"])
        say(f"results: {args.out}")
    else:
        out = results_path(args.out)
        _tell_one(_measured(args), found[_measured(args)])
        say(f"results:     {out}")
        say(f"predictions: {out.parent / 'predictions.jsonl'}")


def _tell_one(name: str, found: Evaluation) -> None:
    rows = [(name, m.value, *_bounds(m, found)) for name, m in found.results.metrics.items()]
    say_table(columns((f"{name}: {found.results.n} samples", "value", "95 % from", "to"), rows))
    _tell_about(found)


def _bounds(metric: Interval, found: Evaluation) -> tuple[float | str, float | str]:
    """The ends of a 95 % interval over images; of a single image there is none."""
    one_image = found.results.settings.get("images") == 1
    return ("-", "-") if one_image else (metric.low, metric.high)


def _between(metric: Interval, found: Evaluation, sign: str = "") -> str:
    low, high = _bounds(metric, found)
    return "-" if isinstance(low, str) else f"{low:{sign}.4f} to {high:{sign}.4f}"


def _tell_about(found: Evaluation) -> None:
    """What must be read together with the numbers."""
    from tinyalign.evaluation.contamination import Contamination, near_duplicates

    results = found.results
    if results.protocol:
        say_table(facts(about(results)))
    if results.skipped:
        say(f"{len(results.skipped)} samples could not be judged; the results list them")
    say(f"contamination: {Contamination.from_dict(results.contamination).line}")
    if near := near_duplicates(found.predictions):
        say(f"near-duplicates: {near}")


def _tell_rows(found: Mapping[str, Evaluation]) -> None:
    """A table for each metric: every row, and by how much memory on differs from it."""
    from tinyalign.evaluation.comparison import compare, paired_metrics

    on = found["on"]
    paired = paired_metrics(on.predictions)
    for name in on.results.metrics:
        if "/" in name:  # of a part of a benchmark: in the results
            continue
        lines: list[list[Any]] = []
        for row, one in found.items():
            value = one.results.metrics[name]
            line: list[Any] = [row, value.value, _between(value, one)]
            if name in paired and row != "on":
                difference = compare([on.predictions], [one.predictions], name)
                line += [f"{difference.value:+.4f}", _between(difference, on, "+")]
            lines.append(line + [""] * (5 - len(line)))
        head = (f"memory ({on.results.n} samples)", name, "95 %", "on minus this", "95 %, paired")
        say_table(columns(head, lines))


def _check(args: EvaluateArgs) -> None:
    """Say now what would be a pity to find out after hours."""
    from tinyalign.evaluation.results import refuse_unknown, results_path

    _check_source(args)
    for name, least in (("batch_size", 1), ("max_new_tokens", 0 if args.task else 1)):
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


def _check_source(args: EvaluateArgs) -> None:
    if (args.task is None) == (args.benchmark is None):
        raise ConfigError("say what to measure: one of --task, --benchmark and --lmms-eval")
    if args.include_path is not None:
        raise ConfigError("--include-path goes with --lmms-eval alone")
    if args.task is not None:
        check_untouched(args)
        if args.images is not None:
            raise ConfigError("--images goes with --benchmark; of a task it is --image-folder")
    else:
        for each in fields(args):
            if each.name in TASK_ONLY and getattr(args, each.name) != each.default:
                raise ConfigError(f"--{each.name.replace('_', '-')} goes with --task alone")
    if not args.path and args.benchmark != "easy-vqa":
        raise ConfigError("name what to judge on with --data")
