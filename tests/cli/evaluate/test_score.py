"""`tinyalign score`: official files in, a table and a results file out, no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyalign.evaluation.results import read_predictions, read_results


@pytest.fixture
def gqa(tmp_path: Path) -> tuple[Path, Path]:
    """(predictions, references) of three questions, two right."""
    questions = {
        str(i): {"question": "what?", "answer": a, "imageId": f"n{i // 2}"}
        for i, a in enumerate(["dog", "cat", "red"])
    }
    references = tmp_path / "testdev_balanced_questions.json"
    references.write_text(json.dumps(questions))
    predictions = tmp_path / "answers.jsonl"
    rows = [{"question_id": str(i), "text": a} for i, a in enumerate(["Dog.", "cat", "blue"])]
    predictions.write_text("\n".join(map(json.dumps, rows)))
    return predictions, references


def test_table_and_results_file(run, gqa, tmp_path: Path):
    out = tmp_path / "out"
    words = ["--predictions", gqa[0], "--references", gqa[1], "--out", out]
    code, page, errors = run("score", "--benchmark", "gqa", *words)
    assert (code, errors) == (0, "")
    assert "GQA: 3 questions" in page
    assert "0.6667" in page
    assert "llava-1.5, version 1" in page
    results = read_results(out)
    assert (results.task, results.n, results.bank) == ("gqa", 3, None)
    metric = results.metrics["accuracy"]
    assert metric.value == pytest.approx(2 / 3)
    assert metric.low <= metric.value <= metric.high
    protocol = results.protocol
    assert (protocol["name"], protocol["version"]) == ("llava-1.5", "1")
    assert protocol["suffix"].startswith("\nAnswer the question using")
    assert results.settings["images"] == 2
    assert results.settings["predictions_hash"] != results.settings["references_hash"]
    predictions = read_predictions(out)
    assert [p.scores["accuracy"] for p in predictions] == [1.0, 1.0, 0.0]
    assert predictions[0].prediction == "Dog."


def test_what_score_writes_it_can_score_again(run, gqa, tmp_path: Path):
    words = ["--references", gqa[1], "--json"]
    _, first, _ = run(
        "score", "--benchmark=gqa", "--predictions", gqa[0], *words, "--out", tmp_path / "a"
    )
    again = tmp_path / "a" / "predictions.jsonl"
    _, second, _ = run("score", "--benchmark=gqa", "--predictions", again, *words)
    assert json.loads(first)["metrics"] == json.loads(second)["metrics"]


def test_golden_mme_from_the_command_line(run, shared_data: Path):
    folder = shared_data / "golden" / "mme_lavin"
    code, page, _ = run("score", "--benchmark=mme", "--predictions", folder, "--json")
    assert code == 0
    metrics = json.loads(page)["metrics"]
    assert round(metrics["perception"]["value"], 4) == 963.6114
    assert round(metrics["cognition"]["value"], 4) == 249.6429
    assert metrics["perception"]["low"] < 963.6114 < metrics["perception"]["high"]


def test_missing_answers_are_an_error_or_wrong_and_said(run, gqa):
    lines = gqa[0].read_text().split("\n")
    gqa[0].write_text("\n".join(lines[:2]))
    words = ["score", "--benchmark=gqa", "--predictions", gqa[0], "--references", gqa[1]]
    code, page, errors = run(*words)
    assert (code, page) == (2, "")
    assert "1 of 3 questions have no answer, such as '2'" in errors
    code, page, _ = run(*words, "--missing", "wrong")
    assert code == 0
    assert "0.6667" in page
    assert "1, counted as wrong" in page


def test_bad_input_is_named(run, gqa, tmp_path: Path):
    predictions, references = gqa
    gone = tmp_path / "gone"
    good = predictions.read_text()

    def errors(*words: object, content: str = good) -> str:
        predictions.write_text(content)
        code, page, said = run("score", *words)
        assert (code, page) == (2, "")
        assert said.count("\n") == 1
        return said

    both = ("--predictions", predictions, "--references", references)
    assert "expected one of gqa, vqav2" in errors("--benchmark=qga", *both)
    assert "no protocol 'x'" in errors("--benchmark=gqa", "--protocol=x", *both)
    assert str(gone) in errors("--benchmark=gqa", "--predictions", gone, "--references", references)
    assert str(gone) in errors(
        "--benchmark=gqa", "--predictions", predictions, "--references", gone
    )
    assert "--references" in errors("--benchmark=gqa", "--predictions", predictions)
    assert "line 2" in errors(
        "--benchmark=gqa", *both, content=good.replace("}", "", 2)[:-1] + "\n"
    )
    assert "answered twice" in errors("--benchmark=gqa", *both, content=f"{good}\n{good}")
    other = good.replace('"2"', '"99"')
    assert "references do not have, such as '99'" in errors("--benchmark=gqa", *both, content=other)
    assert "for daquar alone" in errors("--benchmark=gqa", "--no-wups", *both)
    assert "for mm-vet alone" in errors("--benchmark=gqa", "--judge-model=m", *both)
    assert "both --judge-url and" in errors("--benchmark=mm-vet", "--judge-model=m", *both)


def test_the_ocr_setting_is_said(run, tmp_path: Path):
    data = [{"question_id": 1, "image_id": "i", "question": "what?", "answers": ["a b"] * 10}]
    references = tmp_path / "TextVQA_0.5.1_val.json"
    references.write_text(json.dumps({"data": data}))
    predictions = tmp_path / "p.json"
    predictions.write_text(json.dumps({"1": "a b"}))
    words = ["score", "--benchmark=textvqa", "--predictions", predictions]
    words += ["--references", references]
    assert "accuracy_with_ocr" in run(*words)[1]
    page = run(*words, "--ocr", "false")[1]
    assert "accuracy_without_ocr" in page
    assert "ocr tokens in prompt" in page


def test_files_of_another_benchmark_are_not_a_traceback(run, gqa, shared_data: Path):
    golden = shared_data / "golden"
    for name in ("vqav2", "textvqa", "pope", "scienceqa", "mmmu", "mme", "mm-vet", "captions"):
        for references in (gqa[1], gqa[0], golden / "answer_dict_val.json", golden / "mme_lavin"):
            code, page, errors = run(
                "score", "--benchmark", name, "--predictions", gqa[0], "--references", references
            )
            assert (code, page) == (2, ""), f"{name} {references}"
            assert errors.startswith("error: ")


def test_submissions(run, gqa, tmp_path: Path):
    rows = [{"id": "7", "prediction": "The Cat's"}, {"id": "8", "prediction": "Yes."}]
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text("\n".join(map(json.dumps, rows)))
    made = {}
    for name in ("gqa", "vqav2", "mm-vet"):
        out = tmp_path / f"{name}.json"
        words = ["--predictions", predictions, "--submission", out]
        code, page, _ = run("score", "--benchmark", name, *words)
        assert code == 0
        assert "2 answers" in page
        made[name] = json.loads(out.read_text())
    assert made["gqa"][1] == {"questionId": "8", "prediction": "yes"}
    assert made["vqav2"][0] == {"question_id": 7, "answer": "cat 's"}
    assert made["mm-vet"] == {"v1_7": "The Cat's", "v1_8": "Yes."}
    words = ["--predictions", predictions, "--submission", tmp_path / "x"]
    for name in ("pope", "containment"):
        code, _, errors = run("score", "--benchmark", name, *words)
        assert code == 2
        assert "no server to submit to" in errors
    assert not (tmp_path / "x").exists()
