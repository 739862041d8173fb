"""Prediction files: whatever tool wrote them, an id and a text for each question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyalign.errors import EvaluationError, first_few

ID_KEYS = ("question_id", "questionId", "id", "image_id")
TEXT_KEYS = ("prediction", "response", "text", "caption", "answer")
"""In this order: where a record also holds the truth, that is under `answer`."""
SUBMISSION_KEY = "answer"
Missing = Literal["error", "wrong"]


@dataclass(frozen=True)
class Answers:
    """The content of a predictions file."""

    source: str
    texts: dict[str, str]
    """Answer by question id."""
    prompts: dict[str, str] = field(default_factory=dict)
    """The prompts that the file says were used, where it does."""
    submission: bool = False
    """Whether the texts are in a submission's form (key `answer`) and are judged as they are."""


def read_json(path: str | Path) -> Any:
    """A JSON file, or a list of the values of a file with one a line.

    Raises EvaluationError with file and line for what is missing or no JSON.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise EvaluationError(f"{file}: expected a file, found none; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: expected a text file in UTF-8 ({error}).") from error
    if not text.strip():
        raise EvaluationError(f"{file}: expected JSON, found an empty file.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if error.msg != "Extra data" and not (len(lines) > 1 and _parses(lines[0])):
            raise EvaluationError(
                f"{file}, line {error.lineno}: no JSON there ({error})."
            ) from error
    return list(_lines(text, file))


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _lines(text: str, file: Path) -> Iterator[Any]:
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise EvaluationError(f"{file}, line {number}: no JSON there ({error}).") from error


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON list or of a file with one object a line."""
    content = read_json(path)
    if isinstance(content, dict):
        content = [content]
    for number, record in enumerate(content, start=1):
        if not isinstance(record, dict):
            raise EvaluationError(
                f"{path}, record {number}: expected an object, found {record!r:.60}."
            )
    return content


def read_answers(path: str | Path) -> Answers:
    """Records with an id and a text (a list, or one a line), or one object `{id: text}`."""
    content = read_json(path)
    if isinstance(content, dict) and not (_key(content, ID_KEYS) and _key(content, TEXT_KEYS)):
        return Answers(str(path), one_each(content.items(), str(path)))
    return answers_from(read_records(path), str(path))


def answers_from(records: Sequence[dict[str, Any]], source: str) -> Answers:
    """Answers of records that have an id and a text under one of the usual keys."""
    if not records:
        raise EvaluationError(f"{source}: expected predictions, found none.")
    pairs, prompts, keys = [], {}, set()
    for number, record in enumerate(records, start=1):
        id_key, text_key = _key(record, ID_KEYS), _key(record, TEXT_KEYS)
        if id_key is None or text_key is None:
            raise EvaluationError(
                f"{source}, record {number}: expected an id ({', '.join(ID_KEYS)}) and a text "
                f"({', '.join(TEXT_KEYS)}), found the keys {', '.join(record) or 'none'}."
            )
        keys.add(text_key)
        pairs.append((record[id_key], record[text_key]))
        if isinstance(record.get("prompt"), str):
            prompts[str(record[id_key])] = record["prompt"]
    return Answers(source, one_each(pairs, source), prompts, keys == {SUBMISSION_KEY})


def one_each(pairs: Iterable[tuple[Any, Any]], source: str) -> dict[str, str]:
    """Texts by id. Raises EvaluationError for a second answer and for what is no text."""
    texts: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, (key, text) in enumerate(pairs, start=1):
        name = str(key)
        if name in texts:
            raise EvaluationError(
                f"{source}: question {name!r} is answered twice, in records {first[name]} and "
                f"{number}; keep one answer for each question."
            )
        if isinstance(text, int | float) and not isinstance(text, bool):
            text = str(text)
        if not isinstance(text, str):
            raise EvaluationError(
                f"{source}, record {number} (question {name!r}): expected a text, found "
                f"{text!r:.60}."
            )
        texts[name], first[name] = text, number
    return texts


def align(
    ids: Sequence[str], answers: Answers, missing: Missing = "error"
) -> tuple[list[str], list[str]]:
    """(the answer of each question in order, ids without one).

    An answer to a question that does not exist is always an error; a question without an answer
    is one too unless `missing` is "wrong": then it stays in the denominator, with an empty answer.
    """
    known = set(ids)
    unknown = [name for name in answers.texts if name not in known]
    if unknown:
        raise EvaluationError(
            f"{answers.source}: {len(unknown)} of {len(answers.texts)} answers are to questions "
            f"that the references do not have, such as {first_few(map(repr, unknown), 3)}; check "
            "that both belong to the same split."
        )
    absent = [name for name in ids if name not in answers.texts]
    if absent and missing == "error":
        raise EvaluationError(
            f"{answers.source}: {len(absent)} of {len(ids)} questions have no answer, such as "
            f"{first_few(map(repr, absent), 3)}; answer them, or count them as wrong with "
            "`--missing wrong`."
        )
    return [answers.texts.get(name, "") for name in ids], absent


def _key(record: dict[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in record), None)
