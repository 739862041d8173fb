"""What `evaluate` and `score` share: a benchmark's settings as options, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from tinyalign.errors import ConfigError

if TYPE_CHECKING:
    from tinyalign.evaluation.benchmarks.base import Benchmark
    from tinyalign.evaluation.results import Results


@dataclass(kw_only=True)
class BenchmarkOptions:
    """How a benchmark is asked and judged."""

    protocol: str = "llava-1.5"
    """How the model is asked: llava-1.5, lmms-eval or plain. Stands in the results."""
    ocr: bool | None = None
    """TextVQA: whether prompts have OCR tokens; by default as the protocol has it."""
    missing: Literal["error", "wrong"] = "error"
    """Questions without an answer: an error, or counted as wrong. They are never left out."""
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


def open_benchmark(name: str, options: BenchmarkOptions) -> Benchmark:
    """The benchmark with its own settings; those of another one are an error, not ignored."""
    from tinyalign.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark

    name = BENCHMARKS.check(name)
    return get_benchmark(name, **_settings(name, options))


def check_untouched(options: BenchmarkOptions) -> None:
    """Raise ConfigError for a benchmark's options where there is no benchmark."""
    for each in fields(BenchmarkOptions):
        if getattr(options, each.name) != each.default:
            raise ConfigError(f"--{each.name.replace('_', '-')} goes with --benchmark alone")


def about(results: Results) -> list[tuple[str, Any]]:
    """What must be read together with a benchmark's numbers."""
    protocol: Mapping[str, Any] = results.protocol
    settings = results.settings
    rows: list[tuple[str, Any]] = [
        ("protocol", f"{protocol['name']}, version {protocol['version']}"),
        ("rule", protocol["rule"]),
        ("images", settings["images"]),
    ]
    counts = dict(settings["counts"])
    if missing := counts.pop("missing"):
        rows.append(("without an answer", f"{missing}, counted as wrong"))
    both = {**settings["files"], **counts}
    return rows + [(key.replace("_", " "), value) for key, value in both.items()]


def _settings(name: str, options: BenchmarkOptions) -> dict[str, Any]:
    judging = (options.judge_url, options.judge_model, options.judge_prompt)
    if any(judging) and name != "mm-vet":
        raise ConfigError("--judge-url, --judge-model and --judge-prompt are for mm-vet alone")
    if (options.wordnet or options.no_wups) and name != "daquar":
        raise ConfigError("--wordnet and --no-wups are for daquar alone")
    if name == "daquar":
        return {"wordnet": options.wordnet, "wups": not options.no_wups}
    if not any(judging):
        return {}
    if not (options.judge_url and options.judge_model):
        raise ConfigError("a judge needs both --judge-url and --judge-model")
    from tinyalign.evaluation.benchmarks.judge import Judge, read_prompt

    prompt = None if options.judge_prompt is None else read_prompt(options.judge_prompt)
    return {"judge": Judge(options.judge_url, options.judge_model, prompt)}
