"""`tinyalign score`: official prediction files to numbers, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tinyalign.cli.output import columns, facts, say, say_json, say_table
from tinyalign.errors import ConfigError


@dataclass(kw_only=True)
class ScoreArgs:
    """Arguments of `tinyalign score`."""

    benchmark: str
    """Which one: gqa, vqav2, textvqa, pope, scienceqa, mmmu, mme, mm-vet, containment, captions,
    easy-vqa or daquar."""
    predictions: str
    """Predictions, a file or a folder, in the benchmark's own format, LLaVA's or ours."""
    references: str | None = None
    """The benchmark's files; not needed where the predictions hold the truth (MME, MMMU)."""
    protocol: str = "llava-1.5"
    """How the model was asked: llava-1.5, lmms-eval or plain. Goes into the results."""
    ocr: bool | None = None
    """TextVQA: whether the prompts had OCR tokens; by default as the protocol has it."""
    missing: Literal["error", "wrong"] = "error"
    """Questions without an answer: an error, or counted as wrong. They are never left out."""
    out: str | None = None
    """Results file (.json) or its folder; predictions.jsonl goes beside it."""
    submission: str | None = None
    """Instead of scoring, write the file that the official judge or server takes (MM-Vet, VQAv2,
    GQA) from the predictions."""
    judge_url: str | None = None
    """MM-Vet: base of an OpenAI-compatible API; its key is taken from OPENAI_API_KEY."""
    judge_model: str | None = None
    """MM-Vet: the judging model behind --judge-url."""
    judge_prompt: str | None = None
    """MM-Vet: a file with the official few-shot prompt; without it, a prompt of our own."""
    wordnet: str | None = None
    """DAQUAR: folder of WordNet's files; by default where they usually are."""
    no_wups: bool = False
    """DAQUAR: accuracy alone, without WordNet."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print the results as JSON."""


def score(args: ScoreArgs) -> int:
    """Score a predictions file as the benchmark's official scorer would, with 95 % intervals.

    Every question counts: an answer that is missing, given twice, or to a question that does not
    exist is an error.
    """
    from tinyalign.evaluation.benchmarks.registry import get_benchmark
    from tinyalign.evaluation.benchmarks.scoring import score_files, write_submission
    from tinyalign.evaluation.results import write_results

    benchmark = get_benchmark(args.benchmark, **_settings(args))
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
    say_table(facts(_said(results.settings, protocol.name, protocol.version)))
    if out is not None:
        say(f"results: {out}")
    return 0


def _said(settings: dict[str, Any], name: str, version: str) -> list[tuple[str, Any]]:
    """What must be read together with the numbers."""
    rows: list[tuple[str, Any]] = [("protocol", f"{name}, version {version}")]
    rows.append(("rule", settings["rule"]))
    rows.append(("images", settings["images"]))
    if settings["missing"]:
        rows.append(("without an answer", f"{settings['missing']}, counted as wrong"))
    both = {**settings["files"], **settings["counts"]}
    return rows + [(key.replace("_", " "), value) for key, value in both.items()]


def _settings(args: ScoreArgs) -> dict[str, Any]:
    """The benchmark's own settings; those of another benchmark are an error, not ignored."""
    judging = (args.judge_url, args.judge_model, args.judge_prompt)
    if any(judging) and args.benchmark != "mm-vet":
        raise ConfigError("--judge-url, --judge-model and --judge-prompt are for mm-vet alone")
    if (args.wordnet or args.no_wups) and args.benchmark != "daquar":
        raise ConfigError("--wordnet and --no-wups are for daquar alone")
    if args.benchmark == "daquar":
        return {"wordnet": args.wordnet, "wups": not args.no_wups}
    if not any(judging):
        return {}
    if not (args.judge_url and args.judge_model):
        raise ConfigError("a judge needs both --judge-url and --judge-model")
    from tinyalign.evaluation.benchmarks.judge import Judge, read_prompt

    prompt = None if args.judge_prompt is None else read_prompt(args.judge_prompt)
    return {"judge": Judge(args.judge_url, args.judge_model, prompt)}
