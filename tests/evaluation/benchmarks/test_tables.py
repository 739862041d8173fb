"""Benchmarks in parquet and on the hub: rows without images, images by row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.tables import is_table, open_table


@pytest.fixture
def make_table(tmp_path: Path, photo):
    """`make_table(columns, n)`: a folder with one parquet file; `image` is a made photo."""
    from datasets import Dataset, Features, Image, List, Value

    encoded = io.BytesIO()
    photo.save(encoded, "png")

    def feature(value: Any):
        if isinstance(value, list):
            return List(feature(value[0]))
        return Value("int64" if isinstance(value, int) else "string")

    def make(rows: list[dict[str, Any]], name: str = "test-00000.parquet") -> Path:
        file = tmp_path / "table" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shown = [{**row, "image": {"bytes": encoded.getvalue(), "path": None}} for row in rows]
        features = Features({k: feature(v) for k, v in rows[0].items()} | {"image": Image()})
        Dataset.from_list(shown, features=features).to_parquet(str(file))
        return file.parent

    return make


def test_pope_in_parquet(make_table):
    row = {"question_id": "1", "question": "Is it?", "answer": "no", "image_source": "COCO_1"}
    folder = make_table([{**row, "category": s} for s in ("adversarial", "popular", "random")])
    questions = get_benchmark("pope").questions(folder)
    assert [q.id for q in questions] == ["adversarial/1", "popular/1", "random/1"]
    assert {q.image_id for q in questions} == {"COCO_1"}
    assert questions.images(2)[0].data


def test_rows_of_an_mme_image_are_brought_together(make_table):
    rows = [
        {"question_id": f"count/{i}.jpg", "category": "count", "question": q, "answer": a}
        for q, a in (("one?", "Yes"), ("two?", "No"))
        for i in (1, 2)
    ]
    questions = get_benchmark("mme").questions(make_table(rows))
    assert [(q.id, q.image_id, q.text) for q in questions] == [
        ("count/0", "1.jpg", "one?"),
        ("count/1", "1.jpg", "two?"),
        ("count/2", "2.jpg", "one?"),
        ("count/3", "2.jpg", "two?"),
    ]


def test_textvqa_in_parquet_has_its_ocr_tokens(make_table):
    row = {
        "question_id": 1,
        "image_id": "i",
        "question": "what?",
        "answers": ["a"] * 10,
        "ocr_tokens": ["A", "B"],
    }
    textvqa = get_benchmark("textvqa")
    questions = textvqa.questions(make_table([row], "validation-0.parquet"))
    sample = textvqa.samples(questions, textvqa.protocol())[0]
    assert "Reference OCR token: A, B\n" in sample.instruction
    assert sample.images[0].data


def test_a_split_is_chosen_by_the_names_of_the_files(make_table):
    make_table([{"id": "a"}], "train-0.parquet")
    folder = make_table([{"id": "b"}], "test-0.parquet")
    assert [row["id"] for row in open_table(folder, "test").rows()] == ["b"]
    assert len(open_table(folder, "validation")) == 2


def test_a_hub_id_with_several_configurations_is_laid_end_to_end(make_table, monkeypatch):
    import datasets

    folder = make_table([{"id": "x"}])
    stored = datasets.Dataset.from_parquet(str(folder / "test-00000.parquet"))
    asked: list[tuple[str, str, str]] = []

    def load(source: str, name: str, split: str):
        asked.append((source, name, split))
        return stored

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda source: ["b", "a"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert is_table("owner/name")
    assert len(open_table("owner/name", "test")) == 2
    assert asked == [("owner/name", "a", "test"), ("owner/name", "b", "test")]
    assert len(open_table("owner/name", "test", "b")) == 1


def test_a_slip_in_a_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_table("data/pope")
    with pytest.raises(EvaluationError, match="data/pope: expected coco_pope_random"):
        get_benchmark("pope").questions("data/pope")


def test_what_is_neither_here_nor_on_the_hub_is_said(monkeypatch):
    import datasets

    def fail(source: str):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    with pytest.raises(EvaluationError, match=r"neither a file nor a folder here.*no network"):
        get_benchmark("pope").questions("owner/name")
