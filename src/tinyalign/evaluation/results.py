"""What an evaluation leaves behind: `results.json`, and `predictions.jsonl` beside it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.settings import differences
from tinyalign.version import __version__

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
NEAREST, CONSENSUS = "nearest", "consensus"
"""What memory answers without a model: its nearest entry, and what many of them agree on."""
FREE = (
    "batch_size", "device", "seconds", "images", "memories", "data",
    "benchmark", "files", "counts", "without_interval",
)  # fmt: skip
"""Settings that change no prediction, or that are only known at the end."""


@dataclass(frozen=True)
class Prediction:
    """One judged sample: a line of `predictions.jsonl`."""

    id: str
    """Id of the sample."""
    image_id: str
    """What intervals resample: samples with the same image share it."""
    instruction: str
    """The text the model was asked with; empty for plain captioning."""
    prediction: str
    """What the model generated."""
    references: tuple[str, ...]
    """What it is judged by."""
    loss_sum: float
    """Sum of the cross entropy over the supervised tokens of the sample's own answer, in nats."""
    supervised_tokens: int
    """How many tokens `loss_sum` covers; 0 for a sample without an answer."""
    memory_ids: tuple[str, ...] = ()
    """Retrieved bank entries, best first; empty without a bank."""
    memory_scores: tuple[float, ...] = ()
    """Their similarities to the query (inner product of unit vectors)."""
    look_up: Mapping[str, str] = field(default_factory=dict)
    """What memory answers without a model: `nearest` and `consensus`; empty without a bank."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Per-sample metrics, such as `cider` or `accuracy`."""
    category: str = ""
    """Kind of question, such as a benchmark's sub-task; empty where there are none."""

    @classmethod
    def from_json(cls, line: str, where: str = "predictions") -> Prediction:
        """Read one line; `where` names it in the error when it isn't a prediction."""
        try:
            values = json.loads(line)
            for name in ("references", "memory_ids", "memory_scores"):
                values[name] = tuple(values.get(name, ()))
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (ValueError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{where}: not a prediction as TinyAlign writes it: {error}"
            ) from error


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be judged, and why."""

    id: str
    reason: str


@dataclass
class Results:
    """The content of `results.json`."""

    task: str
    n: int
    """Samples judged; the skipped ones are not among them."""
    metrics: dict[str, Interval]
    model: str
    bank: str | None
    seed: int
    versions: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was run: memory, k, image shown or not, precision, batch size, device, seconds."""
    skipped: list[Skipped] = field(default_factory=list)
    model_hash: str | None = None
    """Hash of the model's weights, whatever folder they lie in."""
    bank_hash: str | None = None
    """The bank's identity; None without one."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """How questions were put and answers read: name, version, prompt; empty where a task has but
    one way."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """How answers were generated."""
    contamination: dict[str, Any] = field(default_factory=dict)
    """How much of what was judged was in the bank, and in the training data where that was given:
    see `Contamination.as_dict`."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; every metric as `{value, low, high}`."""
        return {**asdict(self), "metrics": {k: v.as_dict() for k, v in self.metrics.items()}}

    def deciding(self) -> dict[str, Any]:
        """What decides the predictions, JSON-ready: two parts of one evaluation agree on it."""
        names = ("task", "model_hash", "bank_hash", "protocol", "decoding", "seed", "versions")
        found = {name: getattr(self, name) for name in names}
        found["settings"] = {k: v for k, v in self.settings.items() if k not in FREE}
        return json.loads(json.dumps(found))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """Inverse of `as_dict`; unknown keys of newer versions are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        known["metrics"] = {name: Interval(**m) for name, m in values["metrics"].items()}
        known["skipped"] = [Skipped(**s) for s in values.get("skipped", ())]
        return cls(**known)


def library_versions() -> dict[str, str]:
    """Versions of Python, TinyAlign and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "tinyalign": __version__}
    for name in ("torch", "transformers", "tokenizers", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_results(
    out: str | os.PathLike[str], results: Results, predictions: Iterable[Prediction]
) -> Path:
    """Write `results.json` (or `out` itself if it ends in .json) and `predictions.jsonl` beside it.

    Each file appears whole or not at all. Returns the path of the results.
    """
    path = results_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in predictions)
    _write_whole(path.parent / PREDICTIONS, lines)
    _write_whole(path, [json.dumps(results.as_dict(), ensure_ascii=False, indent=2) + "\n"])
    return path


def results_path(out: str | os.PathLike[str]) -> Path:
    """`out` itself when it names a .json file, else `out`/results.json."""
    path = Path(out)
    return path if path.suffix == ".json" else path / RESULTS


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read what `write_results` wrote."""
    file = results_path(path)
    try:
        return Results.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{file}: not a results file of `tinyalign evaluate`: {error}"
        ) from error


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read the predictions in a .jsonl file, or those beside a results file or in its folder."""
    file = Path(path)
    if file.suffix != ".jsonl":
        file = results_path(file).parent / PREDICTIONS
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines() cuts at U+2028 as well
    except OSError as error:
        raise EvaluationError(f"{file}: no predictions to read: {error}") from error
    return [
        Prediction.from_json(line, f"{file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def refuse_unknown(path: Path) -> None:
    """Raise EvaluationError where predictions lie beside a results file that is not there."""
    predictions = path.parent / PREDICTIONS
    if predictions.is_file() and not path.is_file():
        raise EvaluationError(
            f"{predictions}: belongs to another evaluation in this folder and would be lost; "
            "give each evaluation a folder of its own"
        )


def check_same(where: Path, before: Any, now: Mapping[str, Any]) -> None:
    """Raise EvaluationError unless the evaluation in `where` had the settings it has `now`.

    Both as `Results.deciding` gives them.
    """
    different = differences(before, now)
    if different:
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise EvaluationError(
            f"{where}: belongs to another evaluation, in which other settings held "
            f"({'; '.join(different[:4])}{more}); choose another folder, or start over with "
            "--no-resume (resume=False), which drops what is there"
        )


def _write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write aside, flush to disk, rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
