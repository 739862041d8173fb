"""Paths with nothing there are named before a model is built, and lock no folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tinyalign.errors import BankError, ConfigError, DataError
from tinyalign.training.preflight import check_paths
from tinyalign.training.recipe.data import DataSource, MixturePart
from tinyalign.training.recipe.memory import BankArgs, PerceiverArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import LoraArgs
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun
from tinyalign.training.weights import adapters

from .conftest import make_pairs

WRONG = DataSource("wrong.json")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a model fails the test."""
    monkeypatch.setattr(StageRun, "_model", lambda self: pytest.fail("a model was built"))


def with_data(recipe: Recipe, **sources: object) -> Recipe:
    return replace(recipe, data=replace(recipe.data, **sources))


def with_memory(recipe: Recipe, **settings: object) -> Recipe:
    return replace(recipe, memory=replace(recipe.memory, **settings))


def of_two_steps(recipe: Recipe) -> Recipe:
    """The baseline of a recipe, fit for a stream."""
    return replace(recipe, pretrain=replace(recipe.pretrain, max_steps=2)).with_k(0)


@pytest.mark.parametrize("name", ["pretrain", "pretrain_eval", "finetune", "finetune_eval"])
@pytest.mark.parametrize("cache", ["auto", "features"])
def test_data_that_are_not_there(
    two_stage_recipe: Recipe, no_model: None, name: str, cache: str
) -> None:
    wrong = with_data(two_stage_recipe, cache=cache, **{name: WRONG})
    with pytest.raises(DataError, match=rf"^data\.{name}: wrong\.json: expected"):
        train(wrong)
    assert not Path(wrong.output).exists()


@pytest.mark.parametrize(
    "source",
    [
        DataSource("wrong/*.parquet"),
        DataSource("wrong/{00..02}.tar", streaming=True),
        DataSource(["wrong/a.tar", "wrong/b.tar"]),
        DataSource("wrong", format="parquet"),
        DataSource(streaming=True, mixture=[MixturePart("easy_vqa"), MixturePart("wrong.tar")]),
    ],
)
def test_a_source_of_any_kind(recipe: Recipe, no_model: None, source: DataSource) -> None:
    wrong = with_data(of_two_steps(recipe), pretrain=source)
    with pytest.raises(DataError, match=r"^data\.pretrain: wrong"):
        train(wrong)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bank": BankArgs(data=WRONG)}, r"^memory\.bank\.data: wrong\.json"),
        ({"bank": BankArgs(path="wrong-bank")}, r"^memory\.bank\.path: wrong-bank"),
        (
            {"perceiver": PerceiverArgs(path="wrong-perceiver")},
            r"^memory\.perceiver\.path: wrong-perceiver",
        ),
    ],
)
def test_parts_of_the_memory(
    recipe: Recipe, no_model: None, settings: dict[str, object], says: str
) -> None:
    with pytest.raises((BankError, DataError), match=says):
        train(with_memory(recipe, **settings))


def test_the_run_that_stage_two_starts_from(two_stage_recipe: Recipe, no_model: None) -> None:
    with pytest.raises(ConfigError, match=r"^start_from: wrong-run: no model there"):
        train(replace(two_stage_recipe, start_from="wrong-run"))


def test_what_no_stage_reads_may_be_gone(two_stage_recipe: Recipe) -> None:
    recipe = with_data(two_stage_recipe, cache="features", finetune=WRONG, finetune_eval=WRONG)
    check_paths(recipe, RunFolder(recipe), ["pretrain"])
    gone = with_data(two_stage_recipe, cache="features", pretrain=WRONG, pretrain_eval=WRONG)
    gone = replace(gone.with_k(0), start_from=str(gone.model.language))
    check_paths(gone, RunFolder(gone), ["finetune"])
    check_paths(gone, RunFolder(gone), [])


def test_a_stream_may_miss_some_of_its_shards(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "1.tar").touch()
    source = DataSource(str(tmp_path / "{0..2}.tar"), streaming=True)
    some = with_data(of_two_steps(recipe), pretrain=source)
    check_paths(some, RunFolder(some), ["pretrain"])
    url = with_data(some, pretrain=replace(source, path="https://example.org/{0..2}.tar"))
    check_paths(url, RunFolder(url), ["pretrain"])


def test_a_finished_run_needs_its_data_no_more(recipe: Recipe, tmp_path: Path) -> None:
    path = make_pairs(tmp_path / "gone", 8)
    recipe = with_data(of_two_steps(recipe), pretrain=DataSource(str(path)), pretrain_eval=None)
    train(recipe)
    path.unlink()
    assert train(recipe).stages[0].steps == 2
    with pytest.raises(DataError, match=r"^data\.pretrain"):
        train(recipe, resume=False)


def test_what_the_adapters_of_stage_two_need_is_asked_before_stage_one(
    two_stage_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = replace(two_stage_recipe.finetune, language="lora", lora=LoraArgs(targets=["c_attn"]))
    wrong = replace(two_stage_recipe, finetune=lora)
    with pytest.raises(ConfigError, match="no linear layers called c_attn"):
        train(wrong)
    with pytest.raises(ConfigError, match="no linear layers called c_attn"):
        train(wrong, "pretrain", resume=False)
    assert not list(Path(wrong.output).rglob("checkpoint-*"))
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    monkeypatch.setattr(StageRun, "_model", lambda self: pytest.fail("a model was built"))
    with pytest.raises(ConfigError, match="language lora needs peft"):
        train(wrong)
