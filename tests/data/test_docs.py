"""The examples in docs/data.md are read as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tinyalign.data.readers import open_dataset

DOC = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    return found


@pytest.mark.parametrize(
    ("suffix", "turns", "images"),
    [
        ("json", [("What colour is the ball?", "Red.")], ["7.jpg"]),
        ("jsonl", [("Which is larger?", "The second.")], ["8a.jpg", "8b.jpg"]),
        ("csv", [("", "a red ball"), ("", "two dogs, one of them black")], ["7.jpg"]),
    ],
)
def test_text_formats(suffix: str, turns: list, images: list, tmp_path: Path) -> None:
    path = tmp_path / f"data.{suffix}"
    path.write_text(block(suffix), encoding="utf-8")
    samples = open_dataset(path)
    assert [(sample.instruction, sample.answer) for sample in samples] == turns
    assert [image.path for image in samples[0].images] == [str(tmp_path / name) for name in images]


def test_parquet_as_the_snippet_writes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), "red").save("7.jpg")
    exec(block("python"), {})
    samples = open_dataset("train.parquet", captions="all")
    assert [sample.answer for sample in samples] == ["a red ball", "a ball on grass"]
    assert [sample.id for sample in samples] == ["0#0", "0#1"]
