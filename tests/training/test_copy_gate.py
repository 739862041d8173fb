"""The gate of a memory that can be copied from: fitted at the end of a stage, saved, used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyalign.data.readers import open_dataset
from tinyalign.errors import ConfigError
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.memory.search.ranking import Ranking
from tinyalign.model.copying import FEATURES, CopyGate
from tinyalign.serving.load import load
from tinyalign.training.copy_gate import Evidence, _fitted
from tinyalign.training.recipe.memory import MemoryArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.without_effect import without_effect
from tinyalign.training.run import train


def copying(recipe: Recipe, **settings) -> Recipe:
    memory = replace(recipe.memory, copy=4, order="consensus", neighbours=6, **settings)
    return replace(recipe, memory=memory)


def seen(said: torch.Tensor, copied: torch.Tensor) -> Evidence:
    features = torch.zeros(len(said), len(FEATURES))
    features[:, 0] = 1.0
    features[:, FEATURES.index("agreement")] = (copied > 0.5).float()
    return Evidence(features, said, copied, torch.ones(len(said), dtype=torch.int64))


def test_the_gate_opens_where_memory_knows_better_and_closes_where_it_does_not() -> None:
    said = torch.tensor([0.1, 0.8] * 50)
    copied = torch.tensor([0.9, 0.0] * 50)
    weights, after, before = _fitted(seen(said, copied))
    assert after < before
    sure, unsure = weights[0] + weights[FEATURES.index("agreement")], weights[0]
    assert torch.sigmoid(sure) > 0.8
    assert torch.sigmoid(unsure) < 0.2


def test_a_memory_that_knows_nothing_is_not_copied_from() -> None:
    weights, after, before = _fitted(seen(torch.full((50,), 0.3), torch.zeros(50)))
    assert torch.sigmoid(weights[0]) < 0.1
    assert after == pytest.approx(before, abs=0.1)


def test_a_run_s_model_copies_as_it_was_fitted_to(recipe: Recipe, held_out: Path) -> None:
    done = train(copying(recipe))
    config = json.loads((done.model / "config.json").read_text())
    assert config["memory_copy"]["neighbours"] == 4
    assert config["memory_order"] == "consensus"
    assert 1 <= config["memory_neighbours"] <= 6
    assert "copy gate: " in (done.folder / "log.txt").read_text()

    loaded = load(done.folder, done.folder, device="cpu")
    gate = CopyGate.of(loaded.model.config)
    assert loaded.model.copier.gate == gate
    assert loaded.model.copier.neighbours == 4
    assert loaded.retriever.ranker.ranking == Ranking.of(loaded.model.config)
    assert load(done.folder, done.folder, device="cpu", copy=0).model.copier is None
    constant = load(done.folder, done.folder, device="cpu", copy=0.5).model.copier.gate
    assert constant == CopyGate.constant(0.5)

    samples = open_dataset(held_out)
    judged = {}
    for name, copy in (("own", None), ("none", 0.0), ("half", 0.5)):
        one = load(done.folder, done.folder, device="cpu", copy=copy)
        found = evaluate(
            one.model, one.processor, samples, task="caption", retriever=one.retriever,
            max_new_tokens=6,
        )  # fmt: skip
        judged[name] = found.results
    losses = {name: one.metrics["loss"].value for name, one in judged.items()}
    assert len(set(losses.values())) == 3
    assert losses["half"] < losses["none"]  # an untrained LLM knows less than its memories
    assert "copy" not in judged["none"].settings
    assert judged["half"].settings["copy"] != judged["own"].settings["copy"]


def test_the_same_run_fits_the_same_gate(recipe: Recipe, tmp_path: Path) -> None:
    configs = []
    for name in ("a", "b"):
        done = train(replace(copying(recipe), output=str(tmp_path / name)))
        configs.append(json.loads((done.model / "config.json").read_text()))
    assert configs[0]["memory_copy"] == configs[1]["memory_copy"]
    assert configs[0]["memory_temperature"] == configs[1]["memory_temperature"]


def test_without_a_bank_nothing_is_fitted(recipe: Recipe) -> None:
    done = train(copying(recipe).with_k(0))
    assert json.loads((done.model / "config.json").read_text())["memory_copy"] is None


def test_the_temperature_may_be_given(recipe: Recipe) -> None:
    done = train(copying(recipe, temperature=3.0))
    config = json.loads((done.model / "config.json").read_text())
    assert (config["memory_temperature"], config["memory_neighbours"]) == (3.0, 6)


def test_settings_that_do_nothing_or_cannot_be(recipe: Recipe) -> None:
    idle = replace(recipe, memory=replace(recipe.memory, temperature=3.0))
    assert any("memory.temperature" in line for line in without_effect(idle))
    for wrong, said in (
        ({"order": "votes"}, "memory.order: expected one of similarity, consensus"),
        ({"temperature": -1.0}, "memory.temperature must be 0 or more"),
        ({"copy": -1}, "memory.copy must be 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            MemoryArgs(**wrong)


def test_a_model_whose_memories_were_dropped_can_do_without_a_bank(
    recipe: Recipe, held_out: Path
) -> None:
    done = train(replace(recipe, memory=replace(recipe.memory, drop_probability=0.3)))
    loaded = load(done.folder, device="cpu")
    assert loaded.model.config.memory_optional
    assert loaded.processor.n_memory_tokens == loaded.model.config.n_memory_tokens > 0
    found = evaluate(
        loaded.model, loaded.processor, open_dataset(held_out), task="caption", max_new_tokens=4
    ).results
    assert found.settings["memory"] == "off"
    attached = load(done.folder, done.folder, device="cpu")
    off = evaluate(
        attached.model, attached.processor, open_dataset(held_out), task="caption",
        max_new_tokens=4, retriever=None,
    )  # fmt: skip
    assert off.results.metrics == found.metrics  # the bank that is attached is not asked
    assert attached.model.last_retrieval is None
    noted = [json.loads(x) for x in (done.folder / "metrics.jsonl").read_text().splitlines()]
    without = [x["eval_loss_without_memory"] for x in noted if "eval_loss_without_memory" in x]
    if without:  # the same loss that training saw with all memories absent
        assert found.metrics["loss"].value == pytest.approx(without[-1], abs=1e-4)
