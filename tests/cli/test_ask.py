"""`tinyalign ask` says so where a model does not read what it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tinyalign.model.build import build_model


@pytest.mark.parametrize(
    ("template", "question", "warned"),
    [("plain", "What is this?", True), ("plain", "", False), ("chatml", "What is this?", False)],
)
def test_a_question_that_the_template_leaves_out(
    run, photo: Image.Image, tiny_vision_dir: Path, tiny_llm_dir: Path, tmp_path: Path,
    template: str, question: str, warned: bool,
):  # fmt: skip
    model, processor = build_model(tiny_vision_dir, tiny_llm_dir, k=0, template=template)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    photo.save(tmp_path / "photo.png")
    words = ("--model", tmp_path / "model", "--image", tmp_path / "photo.png")
    code, _, errors = run("ask", *words, "--max-new-tokens", 1, *([question] if question else []))
    assert code == 0, errors
    assert ("chat template (plain) leaves the question out" in errors) == warned
