"""POPE: parsing, the measures of each split and their means, and the label files' releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.pope import parse
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.scoring import score_files


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "yes"),
        ("No, there is none", "no"),
        ("There is not", "no"),
        ("NO", "yes"),  # the script knows No, no and not, and takes all else for yes
        ("nothing", "yes"),
        ("", "yes"),
        ("Yes. There is no dog", "yes"),
        ("no\nyes", "yes"),  # words are split at spaces alone
    ],
)
def test_yes_unless_the_first_sentence_has_a_no(text: str, answer: str):
    assert parse(text) == answer


def records(labels: str) -> list[dict]:
    return [
        {"question_id": i, "image": f"{i // 2}.jpg", "text": f"a {i}?", "label": label}
        for i, label in enumerate(labels.split(), start=1)
    ]


def texts(answers: str) -> list[dict]:
    pairs = enumerate(answers.split(), start=1)
    return [{"question_id": i, "text": text} for i, text in pairs]


@pytest.fixture
def references(write):
    write("refs/coco_pope_random.json", "\n".join(map(json.dumps, records("yes yes no no"))))
    path = write("refs/coco_pope_popular.json", "\n".join(map(json.dumps, records("yes no no no"))))
    return path.parent


def test_measures_of_each_split_and_their_means(references, write, metrics_of):
    write("p/random.jsonl", texts("yes no yes no"))  # TP 1, FN 1, FP 1, TN 1
    folder = write("p/popular.jsonl", texts("yes no no yes")).parent  # TP 1, TN 2, FP 1
    found = metrics_of("pope", folder, references)
    assert [found[f"random/{m}"] for m in ("accuracy", "precision", "recall", "f1")] == [0.5] * 4
    assert found["popular/precision"] == 0.5
    assert found["popular/recall"] == 1.0
    assert found["popular/f1"] == pytest.approx(2 / 3)
    assert found["popular/yes_ratio"] == 0.5
    assert found["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["accuracy"] == pytest.approx((0.5 + 0.75) / 2)


def test_the_yes_ratio_counts_predictions(references, write, metrics_of):
    file = references / "coco_pope_random.json"
    predictions = write("random.jsonl", texts("yes yes yes no"))
    assert metrics_of("pope", predictions, file)["random/yes_ratio"] == 0.75


def test_nobody_says_yes(references, write, metrics_of):
    file = references / "coco_pope_random.json"
    found = metrics_of("pope", write("random.jsonl", texts("no no no no")), file)
    assert (found["random/precision"], found["random/f1"]) == (0.0, 0.0)


def test_popes_own_format_goes_by_order_and_checks_the_questions(references, write, metrics_of):
    file = references / "coco_pope_random.json"
    rows = [{"question": r["text"], "answer": "yes"} for r in records("yes yes no no")]
    assert metrics_of("pope", write("random.jsonl", rows), file)["random/recall"] == 1.0
    with pytest.raises(EvaluationError, match=r"record 1.*keep the order"):
        metrics_of("pope", write("random.jsonl", rows[::-1]), file)
    with pytest.raises(EvaluationError, match="3 answers without ids to 4 questions"):
        metrics_of("pope", write("random.jsonl", rows[:3]), file)


def test_one_file_for_several_splits_must_name_them(references, write, metrics_of):
    rows = [
        {"question_id": r["question_id"], "category": split, "text": "yes"}
        for split in ("random", "popular")
        for r in records("yes yes no no")
    ]
    assert metrics_of("pope", write("all.jsonl", rows), references)["recall"] == 1.0
    for row in rows:
        del row["category"]
    with pytest.raises(EvaluationError, match="without split names"):
        metrics_of("pope", write("all.jsonl", rows), references)


def test_a_split_without_predictions_is_missing(references, write, metrics_of):
    folder = write("p/random.jsonl", texts("yes no yes no")).parent
    with pytest.raises(EvaluationError, match="4 of 8 questions have no answer"):
        metrics_of("pope", folder, references)


def test_golden_confusion(shared_data: Path, write):
    """TP 1183, FP 31, TN 1379, FN 317 on the random split of 2,910 gives F1 0.8718."""
    lines = (shared_data / "golden/pope_coco/coco_pope_random.json").read_text().split("\n")
    labels = [json.loads(line) for line in lines if line.strip()]
    kept = [r for r in labels if r["label"] == "yes"] + [r for r in labels if r["label"] == "no"]
    kept = kept[:2910]
    said = ["Yes"] * 1183 + ["No"] * 317 + ["Yes"] * 31 + ["No"] * 1379
    file = write("coco_pope_random.json", "\n".join(map(json.dumps, kept)))
    rows = [{"question_id": r["question_id"], "text": t} for r, t in zip(kept, said)]
    pope = get_benchmark("pope")
    found = score_files(pope, write("random.jsonl", rows), file, pope.protocol()).results
    assert round(found.metrics["random/f1"].value, 4) == 0.8718
    assert found.settings["counts"]["confusion"]["random"] == {
        "TP": 1183,
        "FP": 31,
        "TN": 1379,
        "FN": 317,
    }
    assert "2,910" in found.settings["files"]["release"]


def test_todays_release(shared_data: Path):
    questions = get_benchmark("pope").questions(shared_data / "golden/pope_coco")
    assert len(questions) == 9000
    assert len({q.image_id for q in questions}) == 500
    assert questions.notes["release"].startswith("random: 3,000 questions")
