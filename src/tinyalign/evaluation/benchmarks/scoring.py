"""From predictions to results: of a run, or of files that another tool wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import Answers, Missing, align, read_answers
from tinyalign.evaluation.benchmarks.base import Benchmark, Judged, Question, Questions
from tinyalign.evaluation.benchmarks.protocols import Protocol
from tinyalign.evaluation.results import Prediction, Results, library_versions
from tinyalign.evaluation.tasks import Scored, loss_metrics
from tinyalign.hashing import hash_bytes, hash_file


@dataclass(frozen=True)
class ScoredFiles:
    """Results and predictions, as a run would have made them."""

    results: Results
    predictions: list[Prediction]


def score_predictions(
    benchmark: Benchmark,
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    protocol: Protocol,
    *,
    missing: Missing = "error",
    seed: int = 0,
) -> tuple[Scored, dict[str, Any]]:
    """Score a model's predictions: (predictions with scores and metrics, what else to say).

    Predictions are matched by id, in any order. A question without a prediction (a sample that
    was skipped) is an error, or counts as wrong with `missing="wrong"`; `counts["missing"]` says
    how many. `loss` is among the metrics where predictions have one.
    """
    found = {prediction.id: prediction for prediction in predictions}
    if len(found) < len(predictions):
        raise EvaluationError(
            f"{len(predictions)} predictions have only {len(found)} ids; keep one of each."
        )
    texts = {name: prediction.prediction for name, prediction in found.items()}
    ids = [question.id for question in questions]
    ordered, absent = align(ids, Answers("the predictions", texts), missing)
    judged = benchmark.judge(questions, [benchmark.submitted(t) for t in ordered], protocol, seed)
    scored = [
        replace(found[name], scores=scores)
        for name, scores in zip(ids, judged.scores)
        if name in found
    ]
    metrics = {**loss_metrics(scored, seed), **judged.metrics}
    return Scored(scored, metrics), {**judged.counts, "missing": len(absent)}


def score_files(
    benchmark: Benchmark,
    predictions: str | Path,
    references: str | Path | None,
    protocol: Protocol,
    *,
    missing: Missing = "error",
    seed: int = 0,
) -> ScoredFiles:
    """Score a predictions file against the benchmark's files; no model is needed.

    Args:
        references: what `benchmark.questions` reads; by default the predictions themselves,
            where their format holds the truth (MME, MMMU).
        missing: "error", or "wrong" to count questions without an answer as wrong.
    """
    if not Path(predictions).exists():
        raise EvaluationError(f"{predictions}: expected a file or a folder, found none.")
    source = _references(benchmark, references, predictions)
    questions = benchmark.complete(read_questions(benchmark, source), predictions)
    with _readable(benchmark, predictions):
        answers = benchmark.answers(predictions, questions)
    benchmark.check_prompts(answers, protocol)
    ids = [question.id for question in questions]
    texts, absent = align(ids, answers, missing)
    submitted = texts if answers.submission else [benchmark.submitted(t) for t in texts]
    judged = benchmark.judge(questions.items, submitted, protocol, seed)
    scored = _as_predictions(benchmark, questions, texts, judged, answers, protocol)
    results = Results(
        task=benchmark.name,
        n=len(questions),
        metrics=judged.metrics,
        model=str(predictions),
        bank=None,
        seed=seed,
        versions=library_versions(),
        protocol=asked_by(benchmark, protocol),
        settings={
            **settings(benchmark, questions, {**judged.counts, "missing": len(absent)}),
            "submission": answers.submission,
            "predictions_hash": content_hash(predictions),
            "references_hash": content_hash(references or predictions),
        },
    )
    return ScoredFiles(results, scored)


def write_submission(benchmark: Benchmark, predictions: str | Path, out: str | Path) -> int:
    """Write the file that the benchmark's official judge or server takes; how many answers it has.

    Whether every question is answered is for the judge to say: test splits have no references.
    """
    answers = read_answers(predictions)
    content = benchmark.submission(answers.texts)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
    return len(content)


def asked_by(benchmark: Benchmark, protocol: Protocol) -> dict[str, Any]:
    """How questions are put and answers judged, for the `protocol` of a results file."""
    return {**protocol.as_dict(), "rule": benchmark.rule, **benchmark.settings()}


def settings(
    benchmark: Benchmark, questions: Questions, counts: Mapping[str, Any]
) -> dict[str, Any]:
    """What a results file says about the questions and the judging, for runs and for files."""
    return {
        "benchmark": benchmark.title,
        "images": len({question.image_id for question in questions}),
        "files": dict(questions.notes),
        "counts": dict(counts),
    }


def content_hash(source: str | Path) -> str | None:
    """Hash of a file, or of the names and contents of a folder's files; None for a hub id."""
    path = Path(source)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.is_file())
    return hash_bytes("".join(f"{p.name}:{hash_file(p)}|" for p in files).encode())


def read_questions(
    benchmark: Benchmark, source: str | Path, images: str | Path | None = None
) -> Questions:
    """The benchmark's questions; EvaluationError where files are not its own, empty, or have an
    id twice."""
    with _readable(benchmark, source):
        questions = benchmark.questions(source, images)
    if not len(questions):
        raise EvaluationError(f"{source}: no questions in it.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise EvaluationError(f"{source}: question {question.id!r} occurs twice; keep one.")
        seen.add(question.id)
    return questions


def _references(
    benchmark: Benchmark, references: str | Path | None, predictions: str | Path
) -> str | Path:
    if references is not None:
        return references
    if benchmark.name == "easy-vqa":
        return "test"
    if not benchmark.self_contained:
        raise EvaluationError(
            f"{benchmark.title} predictions do not hold the truth: name the reference files with "
            f"--references ({benchmark.files})."
        )
    return predictions


@contextmanager
def _readable(benchmark: Benchmark, source: str | Path) -> Iterator[None]:
    """Files of another benchmark, or of another version, fail in many ways: say which and whose."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(
            f"{source}: not in the form of {benchmark.title} ({type(error).__name__}: {error}). "
            f"Expected {benchmark.files}."
        ) from error


def _as_predictions(
    benchmark: Benchmark,
    questions: Questions,
    texts: Sequence[str],
    judged: Judged,
    answers: Answers,
    protocol: Protocol,
) -> list[Prediction]:
    return [
        Prediction(
            id=question.id,
            image_id=question.image_id,
            instruction=answers.prompts.get(question.id, benchmark.prompt(question, protocol)),
            prediction=text,
            references=question.references,
            loss_sum=0.0,
            supervised_tokens=0,
            scores=scores,
            category=question.group,
        )
        for question, text, scores in zip(questions, texts, judged.scores)
    ]
