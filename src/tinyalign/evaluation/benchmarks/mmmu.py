"""MMMU (Yue et al., CVPR 2024): college-level questions in thirty subjects."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyalign.data.sample import ImageRef
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import (
    Answers,
    answers_from,
    read_answers,
    read_json,
    read_records,
)
from tinyalign.evaluation.benchmarks.base import (
    MULTIPLE_CHOICE,
    OPEN,
    Benchmark,
    Judged,
    Question,
    Questions,
)
from tinyalign.evaluation.benchmarks.measures import mean, means_by_group
from tinyalign.evaluation.benchmarks.mmmu_parsing import open_is_right, parse_choice, parse_open
from tinyalign.evaluation.benchmarks.protocols import (
    LETTER,
    SHORT,
    Protocol,
    by_name,
    llava,
    lmms_eval,
    plain,
)
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table

GUESS_SEED = 42
"""Of the guesses for responses that name no option: the official script's own seed."""

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "art_and_design": ("Art", "Art_Theory", "Design", "Music"),
    "business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "health_and_medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "humanities_and_social_science": ("History", "Literature", "Sociology", "Psychology"),
    "tech_and_engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DOMAIN_OF = {subject: domain for domain, those in DOMAINS.items() for subject in those}
_ID = re.compile(r"^[^_]+_(.+)_\d+$")


class Mmmu(Benchmark):
    """Micro-averaged accuracy, by domain and subject, with the rate of responses not understood."""

    name = "mmmu"
    title = "MMMU"
    files = "answer_dict_val.json, an output.json with its answers, or parquet of the questions"
    rule = f"official option and open parsing; no option named: a guess with seed {GUESS_SEED}"
    self_contained = True
    protocols = by_name(
        llava("\n" + LETTER, open_suffix=SHORT),
        lmms_eval(LETTER, open_suffix="\n" + SHORT),
        plain(max_new_tokens=16),
    )

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """Parquet or hub id to ask from; the answer file, or records, to score by alone."""
        if is_table(source):
            return _from_table(open_table(source, "validation"))
        content = read_json(source) if Path(source).is_file() else _outputs(Path(source))
        if isinstance(content, dict):
            items = [_from_answer(name, entry, str(source)) for name, entry in content.items()]
        else:
            items = [_from_record(record, str(source)) for record in content]
        return Questions(tuple(items), lambda index: ())

    def prompt(self, question: Question, protocol: Protocol) -> str:
        """Question, lettered options, suffix: `(A) x` for llava-1.5, `A. x` for lmms-eval."""
        if not question.options:
            return f"{protocol.prefix}{question.text}{protocol.open_suffix}"
        dotted = protocol.name == "lmms-eval"
        form, gap = ("{}. {}", "\n") if dotted else ("({}) {}", "\n\n")
        rows = "\n".join(form.format(*each) for each in zip(question.letters, question.options))
        return f"{protocol.prefix}{question.text}{gap}{rows}\n{protocol.suffix}"

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """Records of an `output.json`, the folders of the thirty subjects, or `{id: text}`."""
        if Path(path).is_dir():
            return answers_from(_outputs(Path(path)), str(path))
        return read_answers(path)

    def complete(self, questions: Questions, path: str | Path) -> Questions:
        """Options from the prediction records, which the answer file does not have."""
        if all(q.options or q.kind != MULTIPLE_CHOICE for q in questions):
            return questions
        content = _outputs(Path(path)) if Path(path).is_dir() else read_json(path)
        records = content if isinstance(content, list) else []
        options = {str(r.get("id")): _options(r) for r in records if isinstance(r, dict)}
        items = tuple(replace(q, options=options.get(q.id, ())) for q in questions)
        return replace(questions, items=items)

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`accuracy`, `accuracy_without_guesses`, `DOMAIN/accuracy` and `SUBJECT/accuracy`."""
        hits, sure, failures = _hits(questions, texts)
        metrics = {
            "accuracy": mean(hits, questions, seed),
            "accuracy_without_guesses": mean(sure, questions, seed),
        }
        domain = means_by_group(hits, questions, seed, group=lambda q: _DOMAIN_OF.get(q.group, ""))
        metrics |= domain | means_by_group(hits, questions, seed)
        choices = sum(q.kind == MULTIPLE_CHOICE for q in questions)
        rate = failures / choices if choices else 0.0
        counts = {"parse_failures": failures, "parse_failure_rate": rate, "guess_seed": GUESS_SEED}
        return Judged([{"accuracy": hit} for hit in hits], metrics, counts)


def _hits(
    questions: Sequence[Question], texts: Sequence[str]
) -> tuple[list[float], list[float], int]:
    """(with guesses, guesses counted as wrong, how many guesses), in the order of the questions.

    Guesses are drawn subject by subject, as the official script goes through them.
    """
    guess = random.Random(GUESS_SEED)
    hits, sure, failures = [0.0] * len(texts), [0.0] * len(texts), 0
    for index in sorted(range(len(texts)), key=lambda i: questions[i].group):
        question, text = questions[index], texts[index]
        if question.kind == OPEN:
            right = open_is_right(parse_open(text), question.references)
            hits[index] = sure[index] = float(right)
            continue
        said = _choice(question, text)
        sure[index] = float(said in question.references)
        if said is None:
            failures += 1
            said = guess.choice(question.letters) if question.letters else None
        hits[index] = float(said in question.references)
    return hits, sure, failures


def _choice(question: Question, text: str) -> str | None:
    if not question.options:  # an answer file alone: the prediction must be the parsed letter
        return text if re.fullmatch(r"[A-Z]", text) else None
    return parse_choice(text, question.letters, dict(zip(question.letters, question.options)))


def _subject(name: str, where: str) -> str:
    found = _ID.match(name)
    if not found:
        raise EvaluationError(
            f"{where}: expected ids such as validation_Accounting_1, found {name!r}."
        )
    return found[1]


def _truth(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _make(name: str, kind: str, truth: Any, where: str, **rest: Any) -> Question:
    return Question(
        id=name,
        references=_truth(truth),
        image_id=name,
        group=_subject(name, where),
        kind=MULTIPLE_CHOICE if kind == MULTIPLE_CHOICE else OPEN,
        **({"text": ""} | rest),
    )


def _from_answer(name: str, entry: Any, where: str) -> Question:
    if not isinstance(entry, dict) or "ground_truth" not in entry:
        raise EvaluationError(
            f"{where}, {name!r}: expected question_type and ground_truth, found {entry!r:.60}."
        )
    return _make(name, entry["question_type"], entry["ground_truth"], where)


def _from_record(record: dict[str, Any], where: str) -> Question:
    if "id" not in record or "answer" not in record or "question_type" not in record:
        raise EvaluationError(
            f"{where}: expected records with id, question_type and answer, found "
            f"{', '.join(record)}; name the answer file with --references."
        )
    return _make(
        record["id"], record["question_type"], record["answer"], where, options=_options(record)
    )


def _options(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(option) for option in (record.get("index2ans") or {}).values())


def _outputs(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*/output.json"))
    if not files:
        raise EvaluationError(f"{folder}: expected SUBJECT/output.json in it, found none.")
    return [record for file in files for record in read_records(file)]


def _from_table(table: Table) -> Questions:
    items = []
    for row in table.rows():
        options = row["options"]
        options = ast.literal_eval(options) if isinstance(options, str) else options
        kind, truth = row["question_type"], row["answer"]
        if isinstance(truth, str) and truth.startswith("["):
            truth = ast.literal_eval(truth)
        made = _make(row["id"], kind, truth, table.source, text=row["question"])
        items.append(replace(made, options=tuple(map(str, options))))

    def images(index: int) -> tuple[ImageRef, ...]:
        found = table.image(index, "image_1")
        return () if found is None else (found,)

    return Questions(tuple(items), images)
