"""MMMU: option and open parsing, guesses that are counted, and the golden outputs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.mmmu_parsing import open_is_right, parse_choice, parse_open
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.scoring import score_files

OPTIONS = {"A": "iron", "B": "copper oxide", "C": "tin", "D": "zinc"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("'B'!", "B"),
        ("It is (A), no, it is (C)", "C"),  # the last one named
        ("(D) and B", "D"),  # brackets go before bare letters
        ("A or B", "B"),
        ("A good metal", "A"),  # an article is a letter too
        ("the metal in it is Copper Oxide", "B"),
        ("copper oxide", None),  # too short for option texts
        ("b", None),
        ("", None),
    ],
)
def test_choices(text: str, letter: str | None):
    assert parse_choice(text, tuple(OPTIONS), OPTIONS) == letter


@given(st.text(max_size=60))
def test_a_parsed_choice_is_an_option(text: str):
    assert parse_choice(text, tuple(OPTIONS), OPTIONS) in {*OPTIONS, None}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("42", {42.0}),
        ("1,234.567", {1234.57, 1.0, 234.57, 1234.0} - {1.0, 1234.0}),
        ("The answer is 3/4", {"3/4", 3.0, 4.0}),
        ("x = 5", {5.0}),
        ("Red", {"red"}),
        ("c", {" c", "c "}),
    ],
)
def test_open_answers(text: str, found: set):
    assert found <= parse_open(text)


@pytest.mark.parametrize(
    ("text", "truth", "right"),
    [
        ("The answer is 1,000.", "1000", True),
        ("so it is transformation", "Transformation", True),
        ("hormone", "Transformation", False),
        ("0.334", "0.33", True),
        ("MgS", ["$MgS$", "MgS"], True),
        ("cat", "c", False),  # one letter must stand alone
        ("c", "C", True),
    ],
)
def test_open_answers_are_right_by_number_or_by_containment(text, truth, right: bool):
    assert open_is_right(parse_open(text), truth) is right


def record(number: int, response: str, answer="A", kind: str = "multiple-choice") -> dict:
    options = {"all_choices": list(OPTIONS), "index2ans": OPTIONS} if kind != "open" else {}
    name = f"validation_Art_{number}"
    return {"id": name, "question_type": kind, "answer": answer, "response": response, **options}


def test_guesses_are_seeded_and_counted(write):
    rows = [record(i, "no idea") for i in range(40)] + [
        record(40, "A"),
        record(41, "7", "7", "open"),
    ]
    mmmu = get_benchmark("mmmu")
    runs = [
        score_files(mmmu, write("o.json", rows), None, mmmu.protocol(), seed=seed).results
        for seed in (0, 1)
    ]
    assert runs[0].metrics["accuracy"].value == runs[1].metrics["accuracy"].value
    assert runs[0].metrics["accuracy_without_guesses"].value == pytest.approx(2 / 42)
    assert runs[0].metrics["accuracy"].value > 2 / 42
    counts = runs[0].settings["counts"]
    assert (counts["parse_failures"], counts["guess_seed"]) == (40, 42)
    assert counts["parse_failure_rate"] == pytest.approx(40 / 41)


def test_answers_alone_must_be_parsed_letters(write, metrics_of):
    truth = {
        f"validation_Art_{i}": {"question_type": "multiple-choice", "ground_truth": "B"}
        for i in range(2)
    }
    parsed = write("p.json", {"validation_Art_0": "B", "validation_Art_1": "(B)"})
    found = metrics_of("mmmu", parsed, write("a.json", truth))
    assert found["accuracy"] == 0.5


def test_ids_must_name_a_subject(write, metrics_of):
    row = {**record(1, "A"), "id": "seven"}
    with pytest.raises(EvaluationError, match="validation_Accounting_1"):
        metrics_of("mmmu", write("o.json", [row]))


def test_golden_outputs(shared_data: Path):
    """LLaVA-1.5-13B's published outputs: 0.367 over 900, the official script's number."""
    folder = shared_data / "golden"
    mmmu = get_benchmark("mmmu")
    predictions = folder / "mmmu_llava1.5_13b_outputs.json"
    alone = score_files(mmmu, predictions, None, mmmu.protocol()).results
    beside = score_files(
        mmmu, predictions, folder / "answer_dict_val.json", mmmu.protocol()
    ).results
    for found in (alone, beside):
        assert found.n == 900
        assert found.metrics["accuracy"].value == 330 / 900
        assert round(found.metrics["accuracy"].value, 3) == 0.367
        assert found.settings["counts"]["parse_failures"] == 2
    kinds = [r["question_type"] for r in json.loads(predictions.read_text())]
    assert kinds.count("multiple-choice") == 847


@pytest.fixture
def table(tmp_path: Path, photo):
    from datasets import Dataset, Features, Image, Value

    encoded = io.BytesIO()
    photo.save(encoded, "png")
    rows = {
        "id": ["validation_Art_1", "validation_Art_2"],
        "question": ["<image 1> Which?", "How many?"],
        "options": ["['x', 'y']", "[]"],
        "answer": ["B", "['2', 'two']"],
        "question_type": ["multiple-choice", "open"],
        "image_1": [{"bytes": encoded.getvalue(), "path": None}] * 2,
    }
    text = ("id", "question", "options", "answer", "question_type")
    features = Features({**dict.fromkeys(text, Value("string")), "image_1": Image()})
    file = tmp_path / "parquet" / "validation-00000.parquet"
    file.parent.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file.parent


def test_questions_from_parquet_and_their_prompts(table):
    mmmu = get_benchmark("mmmu")
    questions = mmmu.questions(table)
    ours = mmmu.samples(questions, mmmu.protocol())
    letter = "Answer with the option's letter from the given choices directly."
    short = "Answer the question using a single word or phrase."
    assert ours[0].instruction == f"<image 1> Which?\n\n(A) x\n(B) y\n\n\n{letter}"
    assert ours[1].instruction == f"How many?\n{short}"
    theirs = mmmu.samples(questions, mmmu.protocol("lmms-eval"))
    assert theirs[0].instruction == f"<image 1> Which?\nA. x\nB. y\n\n{letter}"
    assert theirs[1].instruction == f"How many?\n\n{short}"
    assert ours[1].references == ("2", "two")
    assert ours[0].images[0].data is not None
