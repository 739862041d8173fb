"""Calling the command line from tests, and pairs to call it on."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyalign.cli import main

WORDS = ["red", "green", "blue", "grey"]


@contextmanager
def left_alone() -> Iterator[None]:
    """The command line sets up logging and silences others for good; tests must not notice."""
    from transformers.utils import logging as theirs

    log = logging.getLogger("tinyalign")
    before = log.level, log.propagate, [*log.handlers], theirs.get_verbosity()
    with warnings.catch_warnings():
        yield
    log.level, log.propagate, log.handlers = before[:3]
    theirs.set_verbosity(before[3])
    theirs.enable_progress_bar()


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every test has a cache of its own and leaves the logs as they were."""
    monkeypatch.setenv("TINYALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYALIGN_DEBUG", raising=False)
    with left_alone():
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """`run("verb", ...)`: (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def make_pairs(folder: Path, n: int, *, first: int = 0) -> Path:
    """A LLaVA file of n captions of n different pictures."""
    folder.mkdir(parents=True)
    records = []
    for i in range(first, first + n):
        pixels = np.random.default_rng(i).integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 24)).save(folder / f"{i}.png")
        turns = [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": f"A {WORDS[i % 4]} dog, number {i}, in the park."},
        ]
        records.append({"id": f"pair-{i}", "image": f"{i}.png", "conversations": turns})
    path = folder / "pairs.json"
    path.write_text(json.dumps(records))
    return path
