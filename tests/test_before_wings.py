"""Runs, models, banks and recipes of before the wings load, and give the same numbers.

The folder `fixtures/before_wings` was written by the code of before; its README says what is there.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from tinyalign.data.readers import open_dataset
from tinyalign.errors import ConfigError
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.serving.ask import answer
from tinyalign.serving.load import load
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.run import train

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "before_wings"


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old folders, in which the test runs: their paths are relative."""
    folder = tmp_path / "before"
    shutil.copytree(FIXTURE, folder)
    for stage in ("pretrain", "finetune"):  # left out of the fixture for their size
        shutil.copytree(folder / "run" / "model", folder / "run" / stage / "model")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected() -> dict[str, Any]:
    """What the code of before said of the same questions."""
    return json.loads((FIXTURE / "expected.json").read_text())


def test_the_fixture_is_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURE.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize("remembers", [True, False])
def test_an_old_run_answers_as_it_did(before: Path, expected: dict, remembers: bool) -> None:
    loaded = load("run", "run" if remembers else None)
    for asked in expected["answers"]:
        image = before / "data" / "held-out" / asked["image"]
        said = answer(loaded.model, loaded.processor, image, asked["question"], max_new_tokens=12)
        assert said.text == asked["answer" if remembers else "without"]
        found = [(name, text, round(score, 4)) for name, text, score in said.memories]
        known = [(name, text, round(score, 4)) for name, text, score in asked["memories"]]
        assert found == (known if remembers else [])


@pytest.mark.parametrize("row", ["with_memory", "without"])
def test_an_old_run_has_the_losses_that_it_had(before: Path, expected: dict, row: str) -> None:
    loaded = load("run", "run" if row == "with_memory" else None)
    found = evaluate(
        loaded.model,
        loaded.processor,
        list(open_dataset("data/held-out/questions.json")),
        task="vqa",
        retriever=loaded.retriever,
        max_new_tokens=0,
    )
    losses = {one.id: one.loss_sum for one in found.predictions}
    assert losses == pytest.approx(dict(expected["losses"][row]), rel=1e-4)


def test_an_old_bank_is_whole_and_its_perceiver_is_found(before: Path) -> None:
    bank = MemoryBank.open("bank")
    bank.verify()
    note = json.loads((before / "run" / "memory.json").read_text())
    assert (bank.hash, bank.manifest.perceiver_hash) == (note["bank_hash"], note["perceiver_hash"])
    assert (bank.perceiver_folder / "key.json").is_file()


def test_the_config_of_an_old_run_means_what_it_meant(before: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="tinyalign"):
        recipe = load_recipe("run/config.yaml")
    memory = recipe.memory
    assert (memory.k, memory.neighbours, memory.key.kind) == (2, 4, "aligned")
    fusion = memory.fusion
    assert (fusion.form, fusion.args, fusion.latents_used) == ("sequence", {"prompt_tokens": 3}, 6)
    assert (fusion.hidden_size, fusion.linear_skip, fusion.word_skip) == (8, True, True)
    assert (memory.perceiver.max_steps, memory.perceiver.random_texts) == (4, 0.2)
    assert memory.perceiver.path is memory.bank.path is memory.bank.data is None
    [said] = [line for line in caplog.messages if "older version" in line]
    for old, new in (
        ("fusion_args", "fusion.args"),
        ("compress", "perceiver"),
        ("key", "key.kind"),
    ):
        assert f"memory.{old} is memory.{new}" in said


def test_an_old_run_is_known_as_finished(before: Path, expected: dict) -> None:
    written = (before / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    stages = train(load_recipe("run/config.yaml")).stages
    assert {one.stage: one.eval_loss for one in stages} == expected["stage_eval_loss"]
    assert (before / "run" / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match=r"memory\.k 2 -> 1"):
        train(load_recipe("run/config.yaml", {"memory.k": 1}))


def test_an_old_recipe_is_the_one_that_is_shipped_now() -> None:
    old = load_recipe(FIXTURE / "recipe.yaml")
    as_before = {  # the form that it had then
        "memory.key": {"kind": "aligned", "alpha": 0.4},
        "memory.order": "similarity",
        "memory.neighbours": 10,
        "memory.copy": 0,
    }
    assert old == load_recipe("smollm2-135m-efficientnet-flickr8k", as_before)
