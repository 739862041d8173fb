"""`tinyalign compare`: two runs on the same samples, or two folders of such runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import columns, say, say_json, say_table
from tinyalign.errors import ConfigError, EvaluationError, TinyAlignError
from tinyalign.log import logger

if TYPE_CHECKING:
    from PIL import Image

    from tinyalign.evaluation.comparison import Comparison, Flip
    from tinyalign.evaluation.results import Prediction, Results


@dataclass(kw_only=True)
class CompareArgs:
    """Arguments of `tinyalign compare`."""

    a: str = field(metadata=POSITIONAL)
    """A results file or its folder; or a folder of several such folders."""
    b: str = field(metadata=POSITIONAL)
    """What it is compared to: the same samples, judged with something changed."""
    metric: str | None = None
    """Which of a sample's values: loss, accuracy, cider, ...; by default the task's first."""
    html: str | None = None
    """Write a page with the 20 samples that differ most, with their images, to this file."""
    data: str | None = None
    """Where the samples' images are, if not where they were when the model was judged."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print everything as JSON instead."""


@dataclass(frozen=True)
class Side:
    """One run, read."""

    results: Results
    predictions: list[Prediction]


def compare(args: CompareArgs) -> int:
    """Compare two runs on the same samples: A - B with its 95 % interval over images.

    Two p values: of a paired bootstrap over images, and McNemar's (exact) where samples are right
    or wrong, which is the one to go by when every sample has its own image. Of folders
    with several runs, those of the same name are compared.
    """
    a, b = Path(args.a), Path(args.b)
    names = _names(a, b)
    if args.html and len(names) > 1:
        raise ConfigError("--html shows two runs; name the folders of one benchmark each")
    sides = [(name, _read(a / name), _read(b / name)) for name in names]
    if len(sides) == 1:
        return _one(args, *sides[0][1:])
    return _several(args, sides)


def _one(args: CompareArgs, a: Side, b: Side) -> int:
    from tinyalign.evaluation.comparison import what_differs

    differs = what_differs(a.results, b.results)
    found = _compared(args, a, b)
    if args.html:
        _write_page(args, found, a, b, differs)
    if args.json:
        say_json(_as_dict(found) | {"task": a.results.task, "differs": differs})
        return 0
    rows = [
        (f"A  {a.results.model}", found.a.value, found.a.low, found.a.high),
        (f"B  {b.results.model}", found.b.value, found.b.low, found.b.high),
        ("A - B", found.difference.value, found.difference.low, found.difference.high),
    ]
    lower = " (lower is better)" if found.lower_is_better else ""
    say_table(columns((f"{a.results.task}", found.metric + lower, "95 % from", "to"), rows))
    higher = f"A is higher on {found.only_a_higher}, B on {found.only_b_higher}"
    say(f"{found.n} samples of {found.images} images; {higher}")
    say(found.p_line)
    for line in differs:
        say(f"differs: {line}")
    if found.categories:
        _tell_categories(found)
    if args.html:
        say(f"page: {args.html}")
    return 0


def _several(args: CompareArgs, sides: Sequence[tuple[str, Side, Side]]) -> int:
    """A row for each benchmark, and the average over the paper's eight."""
    from tinyalign.evaluation.average import average
    from tinyalign.evaluation.comparison import what_differs

    found: dict[str, Comparison] = {}
    for name, a, b in sides:
        for line in what_differs(a.results, b.results):
            if line.startswith(("protocol", "decoding")):
                logger.warning("%s: the runs were not judged alike: %s", name, line)
        found[name] = _compared(args, a, b)
    averages = [average(side.results for side in those) for those in list(zip(*sides))[1:]]
    if args.json:
        named = {"a": asdict(averages[0]), "b": asdict(averages[1])}
        say_json({"runs": {n: _as_dict(c) for n, c in found.items()}, "average": named})
        return 0
    rows = [
        (
            name, c.metric, c.a.value, c.b.value, f"{c.difference.value:+.4f}",
            f"{c.difference.low:+.4f} to {c.difference.high:+.4f}", f"{c.p:.2g}",
        )
        for name, c in found.items()
    ]  # fmt: skip
    say_table(columns(("run", "metric", "A", "B", "A - B", "95 %", "p"), rows))
    if averages[0].parts:
        present = ", ".join(averages[0].parts)
        missing = ", ".join(averages[0].missing) or "none"
        say(f"average of {present}: A {averages[0].value:.2f}, B {averages[1].value:.2f}")
        say(f"missing of the eight: {missing}")
    return 0


def _compared(args: CompareArgs, a: Side, b: Side) -> Comparison:
    from tinyalign.evaluation.comparison import compare_runs, default_metric

    metric = args.metric or default_metric(a.results, a.predictions, b.predictions)
    return compare_runs(a.predictions, b.predictions, metric, seed=args.seed)


def _names(a: Path, b: Path) -> list[str]:
    """What to compare within both: themselves ("."), or the folders of runs that both hold."""
    from tinyalign.evaluation.results import RESULTS, results_path

    if results_path(a).is_file() or results_path(b).is_file():
        return ["."]
    inside = [{str(p.parent.relative_to(x)) for p in x.glob(f"**/{RESULTS}")} for x in (a, b)]
    both = sorted(inside[0] & inside[1])
    if not both:
        raise EvaluationError(
            f"{a} and {b}: expected a {RESULTS} in each, or folders of the same name with one; "
            f"found {sorted(inside[0])[:5] or 'none'} and {sorted(inside[1])[:5] or 'none'}"
        )
    return both


def _read(path: Path) -> Side:
    from tinyalign.evaluation.results import read_predictions, read_results

    return Side(read_results(path), read_predictions(path))


def _as_dict(found: Comparison) -> dict[str, Any]:
    """JSON-ready, the flips by id."""
    values = asdict(found) | {"p": found.p}
    values["flips"] = [
        {"id": flip.a.id, "difference": flip.difference, "a": flip.a.prediction,
         "b": flip.b.prediction, "references": flip.a.references}
        for flip in found.flips
    ]  # fmt: skip
    return values


def _tell_categories(found: Comparison) -> None:
    rows = [
        (
            c.category, c.n, c.images, c.a, c.b, f"{c.difference.value:+.4f}",
            f"{c.difference.low:+.4f} to {c.difference.high:+.4f}",
        )
        for c in found.categories
    ]  # fmt: skip
    say_table(columns(("category", "samples", "images", "A", "B", "A - B", "95 %"), rows))


def _write_page(
    args: CompareArgs, found: Comparison, a: Side, b: Side, differs: Sequence[str]
) -> None:
    from tinyalign.analysis.flips_page import flips_page
    from tinyalign.analysis.image_lookup import find_images
    from tinyalign.evaluation.benchmarks.registry import BENCHMARKS

    data = dict(a.results.settings.get("data") or {})
    if args.data is not None:
        data |= {"path": args.data}
    if a.results.task in BENCHMARKS and data.get("path") is not None:
        images = _benchmark_images(a.results.task, found.flips, data)
    else:
        images = find_images([flip.a.image_id for flip in found.flips], data)
    texts = _memory_texts(a, found), _memory_texts(b, found)
    page = flips_page(found, a.results, b.results, images, differs=differs, memories=texts)
    Path(args.html or "").write_text(page, encoding="utf-8")


def _benchmark_images(
    name: str, flips: Sequence[Flip], data: Mapping[str, Any]
) -> dict[str, Image.Image]:
    """Images by `Prediction.image_id`, from the benchmark's files; what cannot be had is left out
    with a warning."""
    from tinyalign.data.images import load_image
    from tinyalign.evaluation.benchmarks.registry import get_benchmark
    from tinyalign.evaluation.benchmarks.scoring import read_questions

    found: dict[str, Image.Image] = {}
    try:
        questions = read_questions(get_benchmark(name), data["path"], data.get("image_folder"))
        places = {question.id: i for i, question in enumerate(questions)}
        for flip in flips:
            for ref in questions.images(places[flip.a.id])[:1] if flip.a.id in places else ():
                found[flip.a.image_id] = load_image(ref)
    except TinyAlignError as error:
        logger.warning("the page lacks images: %s", error)
    return found


def _memory_texts(side: Side, found: Comparison) -> dict[str, str]:
    """Texts of the memories on the page, where the bank is still to be had."""
    from tinyalign.memory.bank.bank import MemoryBank

    ids = {i for flip in found.flips for one in (flip.a, flip.b) for i in one.memory_ids}
    if side.results.bank is None or not ids:
        return {}
    try:
        entries = MemoryBank.open(side.results.bank).entries
        rows = entries.rows_with("id", ids)
        return {entry.id: entry.text for entry in entries.at(rows).values()}
    except TinyAlignError:
        return {}
