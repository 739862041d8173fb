"""VQAv2: M4C form first, then the official soft accuracy, trap included."""

from __future__ import annotations

import pytest

from tinyalign.errors import EvaluationError

from .conftest import answered


@pytest.fixture
def references(write):
    votes = {
        1: ("yes/no", ["yes"] * 10),
        2: ("number", ["2"] * 2 + ["3"] * 8),
        3: ("other", ["john 's"] * 3 + ["john"] * 7),
        4: ("other", ["t-shirt"] * 10),
    }
    annotations = [
        {
            "question_id": key,
            "image_id": 9 + key // 3,
            "answer_type": kind,
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(those)],
        }
        for key, (kind, those) in votes.items()
    ]
    asked = [{"question_id": key, "image_id": 9, "question": "what?"} for key in votes]
    write("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    return write("v2_mscoco_val2014_annotations.json", {"annotations": annotations}).parent


def test_soft_accuracy_of_raw_texts(references, write, metrics_of):
    texts = [(1, "Yes"), (2, "Two"), (3, "John's"), (4, "t-shirt")]
    found = metrics_of("vqav2", write("p.jsonl", answered(texts)), references)
    # 10 votes; 2 of 10; 3 of 10; and "t shirt", which ten identical votes do not forgive
    assert found == {
        "accuracy": pytest.approx((1.0 + 0.6 + 0.9 + 0.0) / 4),
        "yes/no/accuracy": 1.0,
        "number/accuracy": pytest.approx(0.6),
        "other/accuracy": pytest.approx(0.45),
    }


def test_a_submission_is_judged_as_it_is(references, write, metrics_of):
    rows = [(1, "Yes"), (2, "Two"), (3, "John's"), (4, "t-shirt")]
    submission = write("s.json", [{"question_id": k, "answer": a} for k, a in rows])
    found = metrics_of("vqav2", submission, references)
    # identical votes switch all normalising off; `john's` is not `john 's` to the official form
    assert found["accuracy"] == pytest.approx((0.0 + 0.6 + 0.0 + 1.0) / 4)


def test_questions_must_lie_beside_their_annotations(references, write, metrics_of):
    (references / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    with pytest.raises(EvaluationError, match="OpenEnded"):
        metrics_of("vqav2", write("p.jsonl", answered([(1, "yes")])), references)
