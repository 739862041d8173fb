"""What an evaluation found, said to a person: tables, protocol, contamination, where files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinyalign.cli.evaluate.benchmark import about
from tinyalign.cli.evaluate.options import EvaluateArgs
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table

if TYPE_CHECKING:
    from tinyalign.evaluation.metrics.intervals import Interval
    from tinyalign.evaluation.running.runner import Evaluation


def tell(args: EvaluateArgs, found: Mapping[str, Evaluation]) -> None:
    from tinyalign.evaluation.results import results_path

    missing = max(one.missing for one in found.values())
    if args.json:
        values = {name: one.results.as_dict() for name, one in found.items()}
        say_json(values if args.rows else values[args.measured])
    elif missing:
        say(f"shard {args.shard}: done; other shards have {missing} samples still to judge")
    elif args.rows:
        _tell_rows(found)
        _tell_about(found["on"])
        say(f"results: {args.out}")
    else:
        out = results_path(args.out)
        _tell_one(args.measured, found[args.measured])
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
            if name not in one.results.metrics:  # a look-up has no loss
                continue
            value = one.results.metrics[name]
            line: list[Any] = [row, value.value, _between(value, one)]
            if name in paired and row != "on":
                difference = compare([on.predictions], [one.predictions], name)
                line += [f"{difference.value:+.4f}", _between(difference, on, "+")]
            lines.append(line + [""] * (5 - len(line)))
        head = (f"memory ({on.results.n} samples)", name, "95 %", "on minus this", "95 %, paired")
        say_table(columns(head, lines))
