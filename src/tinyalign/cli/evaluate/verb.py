"""`tinyalign evaluate`: how good a model is, with intervals and every prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tinyalign.cli.evaluate.benchmark import open_benchmark
from tinyalign.cli.evaluate.lmms_eval import evaluate_lmms_eval
from tinyalign.cli.evaluate.options import EvaluateArgs, check_evaluate
from tinyalign.cli.evaluate.tell import tell
from tinyalign.cli.unread_question import warn_of_unread_question
from tinyalign.log import logger
from tinyalign.training.recipe.data import RECIPE_ONLY, DataSource

if TYPE_CHECKING:
    from tinyalign.data.sample import Sample
    from tinyalign.evaluation.contamination import Contamination
    from tinyalign.evaluation.running.runner import Evaluation

WITHOUT_QUESTION = ("caption", "captions")
"""The task and the benchmark in which a model is asked for nothing but a caption."""


def evaluate(args: EvaluateArgs) -> int:
    """Judge a model on held-out samples, greedily, each number with its 95 % interval.

    A memory of the judged image itself is never shown to the model. Started by torchrun or
    `accelerate launch`, every process judges a share.
    """
    from tinyalign.evaluation.running.shards import join_ranks, leave_ranks, rank

    if args.lmms_eval is not None:
        return evaluate_lmms_eval(args)
    check_evaluate(args)
    join_ranks()
    try:
        found = _run(args)
        if rank() == 0:
            tell(args, found)
    finally:
        leave_ranks()
    return 0


def _run(args: EvaluateArgs) -> dict[str, Evaluation]:
    """What was found, by the row's name; of one row alone by what was measured."""
    from tinyalign.evaluation.controls.comparison_rows import evaluate_rows, with_control
    from tinyalign.evaluation.running.runner import evaluate as judge
    from tinyalign.evaluation.running.shards import Shard, local_device, rank
    from tinyalign.serving.load import load

    shard = None if args.shard is None else Shard.parse(args.shard)
    samples, settings = _asked(args)
    loaded = load(
        args.model, args.bank, k=args.k, device=local_device(args.device), dtype=args.dtype,
        engine=args.engine, recall=args.recall, copy=args.copy,
    )  # fmt: skip
    if rank() == 0 and args.measured not in WITHOUT_QUESTION:
        warn_of_unread_question(loaded.processor)
    settings |= {
        "out": args.out,
        "seed": args.seed,
        "shard": shard,
        "resume": args.resume,
        "batch_size": args.batch_size,
        "strict": args.strict,
        "loss": args.loss,
        "beams": args.beams,
        "best_of": args.best_of,
        "model_name": args.model,
    }
    if args.max_new_tokens is not None:
        settings["max_new_tokens"] = args.max_new_tokens
    judged = loaded.model, loaded.processor, samples
    if args.rows == "all":
        return evaluate_rows(*judged, retriever=loaded.retriever, **settings)
    retriever = with_control(loaded.retriever, args.shown, args.seed)
    found = judge(*judged, retriever=retriever, show_image=not args.no_image, **settings)
    return {args.measured: found}


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
    from tinyalign.memory.open_bank import find_bank
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
