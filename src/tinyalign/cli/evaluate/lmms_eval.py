"""`tinyalign evaluate --lmms-eval TASK`: a task of lmms-eval, with our results file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tinyalign.cli.evaluate.options import EvaluateArgs, check_bank
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table
from tinyalign.errors import ConfigError, EvaluationError
from tinyalign.training.recipe.data import DataSource

if TYPE_CHECKING:
    from tinyalign.evaluation.contamination import Contamination
    from tinyalign.evaluation.lmms_eval_tasks import TaskRun
    from tinyalign.evaluation.results import Results
    from tinyalign.evaluation.running.conversations import Conversation

TAKEN = (
    "lmms_eval", "include_path", "model", "bank", "out", "resume", "memory", "control", "k",
    "limit",
    "batch_size", "seed", "device", "strict", "train_data", "json", "engine", "recall",
)  # fmt: skip
"""Options that mean something here; lmms-eval's task files decide the others."""
MODEL_ARGS = ("k", "control", "memory", "batch_size", "device", "seed", "engine", "recall")


def evaluate_lmms_eval(args: EvaluateArgs) -> int:
    """Run the task on the model and write what was found."""
    from tinyalign.evaluation.lmms_eval_tasks import run_task
    from tinyalign.evaluation.results import write_results
    from tinyalign.serving import lmms_eval_model

    _check(args)
    started = time.perf_counter()
    assert args.lmms_eval is not None
    settings = {name: getattr(args, name) for name in MODEL_ARGS}
    model = lmms_eval_model.TinyAlign(args.model, args.bank, **settings)
    seen = _Seen(args, model)
    if args.strict:
        model.before = seen.refuse
    found = run_task(
        model,
        args.lmms_eval,
        include_path=args.include_path,
        limit=args.limit,
        seed=args.seed,
    )
    contamination = seen.of(
        [p.id for p in found.predictions], [(p.image_id,) for p in found.predictions]
    )
    results = _results(args, model, found, contamination)
    results.settings["seconds"] = round(time.perf_counter() - started, 3)
    path = write_results(args.out, results, found.predictions)
    if args.json:
        say_json(results.as_dict())
    else:
        _tell(args, results, found)
        say(f"results:     {path}")
    return 0


def _tell(args: EvaluateArgs, results: Results, found: TaskRun) -> None:
    """The task's numbers, and what must be read together with them."""
    from tinyalign.evaluation.contamination import Contamination, near_duplicates

    rows: list[tuple[Any, ...]] = [(n, m.value, m.low, m.high) for n, m in found.metrics.items()]
    rows += [(name, value, "", "") for name, value in found.without_interval.items()]
    title = f"{args.lmms_eval}: {results.n} samples"
    say_table(columns((title, "value", "95 % from", "to"), rows))
    protocol = f"lmms-eval {found.protocol['version']}"
    say_table(facts([("protocol", protocol), ("rule", found.protocol["rule"])]))
    say(f"contamination: {Contamination.from_dict(results.contamination).line}")
    if near := near_duplicates(found.predictions):
        say(f"near-duplicates: {near}")


class _Seen:
    """Looks for the images of the documents in the bank and in the training data."""

    def __init__(self, args: EvaluateArgs, model: Any) -> None:
        self.args = args
        self.bank = getattr(model.retriever, "bank", None)

    def of(self, ids: list[str], hashes: list[tuple[str, ...]]) -> Contamination:
        from tinyalign.evaluation.contamination import contamination_of
        from tinyalign.training.recipe.sources import open_source

        train = self.args.train_data
        source = None if train is None else open_source(DataSource(path=train), self.args.seed)
        return contamination_of(ids, hashes, bank=self.bank, train=source)

    def refuse(self, asked: Iterator[Conversation]) -> None:
        """Raise EvaluationError, before anything is asked, where any of it was seen before."""
        from tinyalign.data.images import pixel_hash

        ids: list[str] = []
        hashes: list[tuple[str, ...]] = []
        for each in asked:
            ids.append(each.id)
            hashes.append(() if each.image is None else (pixel_hash(each.image),))
        self.of(ids, hashes).refuse()


def _results(
    args: EvaluateArgs, model: Any, found: TaskRun, contamination: Contamination
) -> Results:
    from tinyalign.evaluation.results import Results, library_versions
    from tinyalign.hashing import hash_tensors

    retriever, network = model.retriever, model.answerer.model
    bank = getattr(retriever, "bank", None)
    search = getattr(retriever, "search_settings", {})
    return Results(
        task=f"lmms-eval/{args.lmms_eval}",
        n=len(found.predictions),
        metrics=found.metrics,
        model=args.model,
        bank=None if bank is None else str(bank.folder),
        seed=args.seed,
        versions={**library_versions(), "lmms-eval": found.protocol["version"]},
        settings={
            "memory": "off" if retriever is None else getattr(retriever, "control", "on"),
            "k": getattr(retriever, "k", None),
            "image": "shown",
            "dtype": str(network.get_output_embeddings().weight.dtype),
            "device": str(network.device),
            "batch_size": args.batch_size,
            "without_interval": found.without_interval,
            "images": len({p.image_id for p in found.predictions}),
            **({"search": search} if search else {}),
        },
        model_hash=hash_tensors(network.state_dict()),
        bank_hash=None if bank is None else bank.hash,
        protocol=found.protocol,
        decoding={"do_sample": False, "num_beams": 1, "max_new_tokens": "as the task says"},
        contamination=contamination.as_dict(),
    )


def _check(args: EvaluateArgs) -> None:
    from tinyalign.evaluation.results import refuse_unknown, results_path

    for each in fields(args):
        if each.name not in TAKEN and getattr(args, each.name) != each.default:
            name = each.metadata.get("name", each.name).replace("_", "-")
            raise ConfigError(f"--{name} does not go with --lmms-eval, whose task decides it")
    check_bank(args)
    path = results_path(args.out)
    if args.resume and path.is_file():
        raise EvaluationError(
            f"{path}: holds an evaluation; choose another folder, or drop it with --no-resume "
            "(tasks of lmms-eval do not resume)"
        )
    if args.resume:
        refuse_unknown(path)
