"""`tinyalign score`: official prediction files to numbers, without a model."""

from __future__ import annotations

from dataclasses import dataclass

from tinyalign.cli.evaluate.benchmark import BenchmarkOptions, about, open_benchmark
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table


@dataclass(kw_only=True)
class ScoreArgs(BenchmarkOptions):
    """Arguments of `tinyalign score`."""

    benchmark: str
    """Which one: gqa, vqav2, textvqa, pope, scienceqa, mmmu, mme, mm-vet, containment, captions,
    easy-vqa or daquar."""
    predictions: str
    """Predictions, a file or a folder, in the benchmark's own format, LLaVA's or ours."""
    references: str | None = None
    """The benchmark's files; not needed where the predictions hold the truth (MME, MMMU)."""
    out: str | None = None
    """Results file (.json) or its folder; predictions.jsonl goes beside it."""
    submission: str | None = None
    """Instead of scoring, write the file that the official judge or server takes (MM-Vet, VQAv2,
    GQA) from the predictions."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print the results as JSON."""


def score(args: ScoreArgs) -> int:
    """Score a predictions file as the benchmark's official scorer would, with 95 % intervals.

    Every question counts: an answer that is missing, given twice, or to a question that does not
    exist is an error.
    """
    from tinyalign.evaluation.benchmarks.scoring import score_files, write_submission
    from tinyalign.evaluation.results import write_results

    benchmark = open_benchmark(args.benchmark, args)
    if args.submission is not None:
        n = write_submission(benchmark, args.predictions, args.submission)
        written = {"submission": args.submission, "answers": n}
        say_json(written) if args.json else say(f"submission: {args.submission}, {n} answers")
        return 0
    protocol = benchmark.protocol(args.protocol, args.ocr)
    found = score_files(
        benchmark,
        args.predictions,
        args.references,
        protocol,
        missing=args.missing,
        seed=args.seed,
    )
    out = None if args.out is None else write_results(args.out, found.results, found.predictions)
    if args.json:
        say_json(found.results.as_dict())
        return 0
    results = found.results
    rows = [(name, m.value, m.low, m.high) for name, m in results.metrics.items()]
    title = f"{benchmark.title}: {results.n} questions"
    say_table(columns((title, "value", "95 % from", "to"), rows))
    say_table(facts(about(results)))
    if out is not None:
        say(f"results: {out}")
    return 0
