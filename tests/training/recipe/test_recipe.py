"""Recipes: typed, checked, shipped ones parse, and mistakes get a sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyalign.data.templates import CHAT_TEMPLATES
from tinyalign.errors import ConfigError
from tinyalign.training.recipe.data import DataArgs, DataSource
from tinyalign.training.recipe.files import find_recipe, load_recipe, save_recipe, shipped_recipes
from tinyalign.training.recipe.memory import BankArgs, MemoryArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import memory_samples
from tinyalign.training.recipe.stage import StageArgs

PAPER = [
    f"{llm}-{vision}"
    for llm in ("qwen2-0.5b", "tinyllama-1.1b", "phi-2", "qwen2.5-3b")
    for vision in ("siglip", "clip")
]


def test_the_papers_eight_and_two_packaged_recipes_are_shipped() -> None:
    packaged = ["smollm2-135m-efficientnet-easy-vqa", "smollm2-135m-efficientnet-flickr8k"]
    assert shipped_recipes() == sorted(PAPER + packaged)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_parses_and_survives_saving(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    save_recipe(recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == recipe
    for template in (recipe.model.template, recipe.pretrain.template, recipe.finetune.template):
        assert template is None or template in CHAT_TEMPLATES


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_papers_hyper_parameters(name: str) -> None:
    recipe = load_recipe(name)
    first, second = recipe.pretrain, recipe.finetune
    assert (first.batch_size, first.learning_rate, first.language) == (256, 1e-3, "frozen")
    assert (second.batch_size, second.learning_rate, second.language) == (128, 2e-5, "full")
    for stage in (first, second):
        assert (stage.schedule, stage.warmup, stage.weight_decay) == ("cosine", 0.03, 0.0)
        assert (stage.vision, stage.connectors) == ("frozen", "full")
    memory = recipe.memory
    assert (memory.k, memory.fusion.form, memory.bank.entries) == (5, "width", 100_000)
    assert (memory.key.kind, memory.key.alpha) == ("attention", 0.4)


def test_overrides_as_on_the_command_line_and_as_a_mapping() -> None:
    options = ["--pretrain.learning_rate", "1e-4", "--memory.k=0", "--output", "elsewhere"]
    by_option = load_recipe("phi-2-clip", options)
    values = {"pretrain.learning_rate": 1e-4, "memory.k": 0, "output": "elsewhere"}
    assert by_option == load_recipe("phi-2-clip", values)
    assert (by_option.pretrain.learning_rate, by_option.memory.k) == (1e-4, 0)
    assert by_option.pretrain.batch_size == 256  # the rest stays


def test_a_stage_given_in_part_keeps_the_rest_of_its_own_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: {pretrain: {path: a.json}}\nfinetune: {epochs: 2}\n")
    recipe = load_recipe(path)
    assert recipe.finetune == StageArgs(
        learning_rate=2e-5, batch_size=128, language="full", epochs=2
    )
    assert recipe.pretrain == StageArgs()


def test_with_k_is_the_baseline_of_the_same_recipe() -> None:
    recipe = load_recipe("qwen2-0.5b-siglip")
    baseline = recipe.with_k(0)
    assert baseline.memory.k == 0
    assert not baseline.memory.reads_bank
    assert baseline.with_k(5) == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"memory.k": -1}, "memory.k must be 0"),
        ({"memory.control": "magic"}, "memory.control"),
        ({"memory.drop_probability": 1.0}, "memory.drop_probability"),
        ({"memory.perceiver.held_out": 0.0}, "held-out"),
        ({"memory.bank.path": "b", "memory.control": "untrained_perceiver"}, "bank of its own"),
        ({"pretrain.rate": 1}, "pretrain.rate"),
        ({"pretrain.batch_size": "many"}, "pretrain.batch_size"),
        ({"pretrain.micro_batch_size": 100}, "no multiple of micro_batch_size"),
        ({"pretrain.eval_fractions": [2.0]}, "eval_fractions"),
        ({"pretrain.connectors": "frozen"}, "nothing to train"),
        ({"pretrain.vision": "full", "data.cache": "features"}, "cannot be cached"),
        ({"pretrain.vision": "full"}, "leaves the memory bank's keys behind"),
        ({"finetune.warmup": 1.5}, "warmup is a share"),
        ({"finetune.learning_rate": 2.0}, "learning_rate must lie between"),
        ({"output": ""}, "output is empty"),
        ({"model.language": ""}, "model.language is empty"),
        ({"data.pretrain.limit": 0}, "limit must be at least 1"),
        ({"data.workers": -1}, "data.workers"),
    ],
)
def test_a_bad_setting_gets_a_sentence(override: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe("phi-2-siglip", override)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such recipe.*qwen2-0\.5b-siglip"):
        find_recipe("no-such-recipe")


def test_a_file_goes_before_a_shipped_name(tmp_path: Path) -> None:
    path = tmp_path / "phi-2-clip.yaml"
    path.write_text("data: {pretrain: {path: mine.json}}")
    assert find_recipe(path) == path
    assert load_recipe(path).data.pretrain.path == "mine.json"


def test_which_controls_read_a_bank() -> None:
    reading = {
        control
        for control in (
            "none",
            "soft_prompt",
            "random",
            "shuffled",
            "another_sample",
            "untrained_perceiver",
        )
        if MemoryArgs(k=1, control=control).reads_bank
    }
    assert reading == {"none", "random", "shuffled", "another_sample", "untrained_perceiver"}


def test_a_batch_is_shared_by_processes_and_micro_batches() -> None:
    stage = StageArgs(batch_size=16, micro_batch_size=4)
    assert [stage.accumulation(n) for n in (1, 2, 4)] == [(4, 4), (4, 2), (4, 1)]
    assert stage.accumulation(8) == (2, 1)
    with pytest.raises(ConfigError, match="shared evenly by 3"):
        stage.accumulation(3)


def test_seed_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match="seed"):
        Recipe(data=DataArgs(pretrain=DataSource("a.json")), seed=-1)


def test_every_caption_can_be_remembered_while_one_is_trained_on(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x", b"y"], "captions": [["a", "b"], ["c"]]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    source = DataSource(path=str(tmp_path / "pairs.parquet"), captions="first")
    assert len(memory_samples(MemoryArgs(), source)) == 2
    assert len(memory_samples(MemoryArgs(bank=BankArgs(captions="all")), source)) == 3
