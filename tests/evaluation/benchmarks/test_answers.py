"""Prediction files: every usual format is read, nothing is guessed, nothing is dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import Answers, align, read_answers, read_json


@pytest.mark.parametrize(
    "content",
    [
        '[{"question_id": 1, "text": "a"}, {"question_id": 2, "text": "b"}]',
        '{"question_id": 1, "text": "a"}\n{"question_id": 2, "text": "b"}\n',
        '{"questionId": "1", "prediction": "a"}\n\n{"questionId": "2", "prediction": "b"}',
        '[{"id": "1", "image_id": "x", "prediction": "a"}, {"id": 2, "prediction": "b"}]',
        '[{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}]',
        '[{"id": 1, "answer": "truth", "response": "a"}, {"id": 2, "response": "b"}]',
        '{"1": "a", "2": "b"}',
        '\ufeff{"1": "a",\n "2": "b"}',
    ],
)
def test_the_usual_formats(write, content: str):
    assert read_answers(write("p.json", content)).texts == {"1": "a", "2": "b"}


def test_a_single_record_is_a_record(write):
    assert read_answers(write("p.jsonl", [{"id": 1, "text": "a"}])).texts == {"1": "a"}


def test_prompts_and_submissions_are_noticed(write):
    raw = read_answers(write("a.jsonl", [{"question_id": 1, "prompt": "why?", "text": "a"}]))
    assert (raw.prompts, raw.submission) == ({"1": "why?"}, False)
    assert read_answers(write("b.json", [{"question_id": 1, "answer": "a"}])).submission


@given(st.dictionaries(st.text(min_size=1), st.text(), min_size=1))
def test_any_text_comes_back(texts: dict[str, str]):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        lines = (json.dumps({"id": k, "text": v}, ensure_ascii=False) for k, v in texts.items())
        path.write_text("\n".join(lines), encoding="utf-8")
        assert read_answers(path).texts == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty file"),
        ('[{"id": 1, "text": "a"},\n {"id": 2 "text": "b"}]', "line 2"),
        ('{"id": 1, "text": "a"}\n{"id": 2, "text"', "line 2"),
        ('{"id": 1, "text": "a"}\nnonsense\n', "line 2"),
        ("[]", "found none"),
        ("[1, 2]", "record 1: expected an object"),
        ('[{"id": 1}]', "found the keys id"),
        ('[{"id": 1, "text": null}]', "question '1'.*expected a text"),
        (
            '[{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]',
            "answered twice, in records 1 and 2",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write, content: str, message: str):
    with pytest.raises(EvaluationError, match=message):
        read_answers(write("p.json", content))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(EvaluationError, match=r"gone\.json: expected a file"):
        read_json(tmp_path / "gone.json")


def test_answers_are_put_in_the_order_of_the_questions():
    texts, absent = align(["a", "b"], Answers("f", {"b": "2", "a": "1"}))
    assert (texts, absent) == (["1", "2"], [])


def test_missing_answers_never_shrink_the_denominator():
    given_some = Answers("f", {"b": "2"})
    with pytest.raises(EvaluationError, match="2 of 3 questions have no answer, such as 'a'; 'c'"):
        align(["a", "b", "c"], given_some)
    assert align(["a", "b", "c"], given_some, "wrong") == (["", "2", ""], ["a", "c"])


def test_answers_to_unknown_questions_are_refused_even_where_others_are_missing():
    with pytest.raises(EvaluationError, match="1 of 2 answers are to questions"):
        align(["a"], Answers("f", {"a": "1", "z": "2"}), "wrong")
