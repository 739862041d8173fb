"""MME: parsing, scores of pairs, and the golden folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.mme import parse
from tinyalign.evaluation.benchmarks.registry import get_benchmark


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("yes, there is", "yes"),
        ("No.", "no"),
        ("Not at all", "no"),
        ("I know", None),  # the first four characters are `i kn`
        (" yes", "yes"),
        ("  yes", None),
        ("maybe", None),
        ("", None),
    ],
)
def test_parsing(text: str, answer: str | None):
    assert parse(text) == answer


def tab(*rows: tuple[str, str, str]) -> str:
    return "".join(
        f"{image}\tIs it {i}? Please answer yes or no.\t{truth}\t{answer}\n"
        for i, (image, truth, answer) in enumerate(rows)
    )


def test_scores_of_sub_tasks_and_their_sums(write, metrics_of):
    rows = [
        ("1.jpg", "Yes", "yes"),
        ("1.jpg", "No", "No"),
        ("2.jpg", "Yes", "no"),
        ("2.jpg", "No", "no"),
    ]
    write("mme/count.txt", tab(*rows))
    write("mme/OCR.txt", tab(*rows[2:]))
    folder = write("mme/code_reasoning.txt", tab(*rows[:2])).parent
    found = metrics_of("mme", folder)
    assert found["count/accuracy"] == 0.75
    assert found["count/accuracy_plus"] == 0.5
    assert found["count/score"] == 125.0
    assert found["OCR/score"] == 50.0
    assert found["perception"] == 175.0
    assert found["cognition"] == 200.0


def test_golden_folder(shared_data: Path, metrics_of):
    """LaVIN's published answers: perception 963.6114, cognition 249.6429."""
    found = metrics_of("mme", shared_data / "golden/mme_lavin")
    assert round(found["perception"], 4) == 963.6114
    assert round(found["cognition"], 4) == 249.6429


def test_what_a_model_is_asked(write):
    rows = [("1.jpg", "Yes", ""), ("1.jpg", "No", "")]
    folder = write("mme/count.txt", tab(*rows)).parent
    mme = get_benchmark("mme")
    questions = mme.questions(folder)
    assert mme.samples(questions, mme.protocol())[0].instruction == (
        "Is it 0?\nAnswer the question using a single word or phrase."
    )
    plain = mme.samples(questions, mme.protocol("plain"))[0]
    assert plain.instruction == "Is it 0? Please answer yes or no."
    assert plain.images[0].path.endswith("count/1.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.jpg\tq\tYes\n", "line 1: expected image, question, truth and answer"),
        ("1.jpg\tq\tYes\tyes\tmore\n", "line 1: expected 3 or 4 columns"),
        (tab(("1.jpg", "Maybe", "yes")), "line 1: expected the truth Yes or No"),
        (tab(("1.jpg", "Yes", "yes"), ("2.jpg", "No", "yes")), "two questions in a row"),
        (tab(("1.jpg", "Yes", "yes")), "two questions in a row"),
    ],
)
def test_damaged_files_are_named(write, metrics_of, content: str, message: str):
    folder = write("mme/count.txt", content).parent
    references = write("refs/count.txt", tab(("1.jpg", "Yes", ""), ("1.jpg", "No", ""))).parent
    with pytest.raises(EvaluationError, match=message):
        metrics_of("mme", folder, references if "\tq\t" in content else None)


def test_a_line_too_few_is_missing_and_never_left_out(write, metrics_of):
    whole = tab(("1.jpg", "Yes", "yes"), ("1.jpg", "No", "no"))
    references = write("refs/count.txt", whole).parent
    folder = write("mme/count.txt", whole.split("\n")[0] + "\n").parent
    with pytest.raises(EvaluationError, match="1 of 2 questions have no answer"):
        metrics_of("mme", folder, references)
    assert metrics_of("mme", folder, references, missing="wrong")["count/accuracy"] == 0.5


def test_an_empty_folder_is_no_mme(tmp_path: Path, metrics_of):
    with pytest.raises(EvaluationError, match="tab files"):
        metrics_of("mme", tmp_path)
