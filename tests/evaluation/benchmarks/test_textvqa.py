"""TextVQA: M4C on both sides; with and without OCR tokens are two columns."""

from __future__ import annotations

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import get_benchmark

from .conftest import answered


@pytest.fixture
def references(write):
    data = [
        {"question_id": 1, "image_id": "i1", "question": "what brand?", "answers": ["Nokia"] * 10},
        {
            "question_id": 2,
            "image_id": "i1",
            "question": "What Time?",
            "answers": ["5:10"] * 2 + ["five"] * 8,
        },
    ]
    return write("TextVQA_0.5.1_val.json", {"data": data})


@pytest.fixture
def words(write):
    tokens = [{"image_id": "i1", "ocr_tokens": ["NOKIA", "5:10"]}]
    write("TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})


def test_the_column_says_whether_there_were_ocr_tokens(references, write, metrics_of):
    predictions = write("p.jsonl", answered([(1, "nokia?"), (2, "5:10")]))
    assert metrics_of("textvqa", predictions, references) == {
        "accuracy_with_ocr": pytest.approx(0.8)
    }
    for settings in ({"ocr": False}, {"protocol": "lmms-eval"}):
        assert metrics_of("textvqa", predictions, references, **settings) == {
            "accuracy_without_ocr": pytest.approx(0.8)
        }


def test_llavas_files_name_image_and_prompt(references, write, metrics_of):
    short = "\nAnswer the question using a single word or phrase."
    rows = [
        {
            "question_id": "i1",
            "prompt": f"{question}\nReference OCR token: NOKIA, 5:10{short}",
            "text": text,
        }
        for question, text in (("what time?", "five"), ("what brand?", "nokia"))
    ]
    predictions = write("p.jsonl", rows)
    found = metrics_of("textvqa", predictions, references)
    assert found == {"accuracy_with_ocr": pytest.approx(1.0)}
    with pytest.raises(EvaluationError, match="prompts with OCR tokens, but the protocol says"):
        metrics_of("textvqa", predictions, references, ocr=False)


def test_prompts(references, words):
    textvqa = get_benchmark("textvqa")
    questions = textvqa.questions(references)
    short = "\nAnswer the question using a single word or phrase."
    shown = textvqa.samples(questions, textvqa.protocol())[1].instruction
    assert shown == f"What Time?\nReference OCR token: NOKIA, 5:10{short}"
    theirs = textvqa.samples(questions, textvqa.protocol("lmms-eval"))[1].instruction
    assert theirs == f"What time?{short}"


def test_ocr_tokens_that_are_not_there_are_not_passed_over(references):
    textvqa = get_benchmark("textvqa")
    with pytest.raises(EvaluationError, match="Rosetta"):
        textvqa.samples(textvqa.questions(references), textvqa.protocol())
