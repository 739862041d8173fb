"""Settings by the names that they had: in files, as options and in Python."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tinyalign.errors import ConfigError
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.recipe.memory import (
    BankArgs,
    FusionArgs,
    KeyArgs,
    MemoryArgs,
    PerceiverTraining,
)
from tinyalign.training.recipe.old_names import FLAT_MEMORY, with_new_names

OLD = {
    "k": 3,
    "fusion": "sequence",
    "fusion_args": {"prompt_tokens": 4},
    "latents_used": 12,
    "hidden_size": 64,
    "linear_skip": True,
    "closed_form": False,
    "word_skip": True,
    "key": "pooled",
    "alpha": 0.2,
    "bank": None,
    "data": {"path": "memories.json"},
    "captions": "all",
    "entries": 7,
    "keys_dtype": "float32",
    "values_dtype": "float16",
    "compressor": None,
    "compress": {"max_steps": 3, "silence": True},
    "control": "shuffled_values",
}


def written(folder: Path, memory: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"pretrain": {"path": "a.json"}}, "memory": memory}))
    return path


def test_the_sample_has_every_old_name() -> None:
    assert OLD.keys() >= FLAT_MEMORY.keys()


def test_an_old_recipe_means_what_it_meant(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="tinyalign"):
        memory = load_recipe(written(tmp_path, OLD)).memory
    assert memory.fusion == FusionArgs(
        form="sequence", args={"prompt_tokens": 4}, latents_used=12, hidden_size=64,
        linear_skip=True, closed_form=False, word_skip=True,
    )  # fmt: skip
    assert (memory.k, memory.key) == (3, KeyArgs(kind="pooled", alpha=0.2))
    assert memory.bank.data.path == "memories.json"
    bank = replace(memory.bank, data=None)
    assert bank == BankArgs(captions="all", entries=7, keys_dtype="float32", values_dtype="float16")
    assert (memory.perceiver.path, memory.perceiver.max_steps) == (None, 3)
    assert memory.perceiver.silence
    # Then it meant another sample's memories; values that are dealt anew are "shuffled" now.
    assert memory.control == "another_sample"
    [said] = [line for line in caplog.messages if "older version" in line]
    assert all(f"memory.{old} is memory.{new}" in said for old, new in FLAT_MEMORY.items())
    assert "memory.control shuffled_values is another_sample" in said


def test_a_recipe_of_today_is_left_alone(tmp_path: Path, caplog) -> None:
    recipe = load_recipe("smollm2-135m-efficientnet-flickr8k")
    settings = recipe.as_dict()
    assert with_new_names(settings) == (settings, None)
    assert "older version" not in caplog.text


@pytest.mark.parametrize(
    ("words", "new", "value"),
    [
        (["--memory.alpha", "0.3"], "key.alpha", 0.3),
        (["--memory.fusion=sequence"], "fusion.form", "sequence"),
        (["--memory.fusion_args", "{prompt_tokens: 2}"], "fusion.args", {"prompt_tokens": 2}),
        (["--memory.key", "aligned"], "key.kind", "aligned"),
        (["--memory.bank", "here"], "bank.path", "here"),
        (["--memory.compress.epochs", "2"], "perceiver.epochs", 2.0),
        (["--memory.compressor=there"], "perceiver.path", "there"),
        (["--memory.control", "random_neighbours"], "control", "random"),
    ],
)
def test_an_old_option_says_its_new_name(words: list[str], new: str, value: object, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="tinyalign"):
        found = load_recipe("phi-2-clip", words).memory
    for part in new.split("."):
        found = getattr(found, part)
    assert found == value
    assert any("is now called" in line for line in caplog.messages)


def test_old_arguments_in_python_say_their_new_names() -> None:
    with pytest.warns(DeprecationWarning, match=r"memory\.alpha is now called memory\.key\.alpha"):
        memory = MemoryArgs(alpha=0.1)
    assert memory.key == KeyArgs(alpha=0.1)
    with pytest.warns(DeprecationWarning, match=r"memory\.alpha is now called memory\.key\.alpha"):
        assert memory.alpha == 0.1
    with pytest.warns(
        DeprecationWarning, match=r"memory\.fusion is now called memory\.fusion\.form"
    ):
        assert MemoryArgs(fusion="sequence").fusion.form == "sequence"
    with pytest.warns(
        DeprecationWarning, match=r"memory\.compress is now called memory\.perceiver"
    ):
        assert MemoryArgs(compress=PerceiverTraining(epochs=3.0)).perceiver.epochs == 3.0
    with pytest.raises(TypeError, match="nothing"):
        MemoryArgs(nothing=1)
    with pytest.raises(AttributeError, match="no setting 'nothing'"):
        _ = memory.nothing


def test_an_old_control_in_python_is_the_new_one_and_a_wrong_one_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="random_neighbours is now called random"):
        assert MemoryArgs(control="random_neighbours").control == "random"
    with pytest.raises(ConfigError, match=r"memory\.control: expected one of .*found 'shufled'"):
        MemoryArgs(control="shufled")


def test_setting_an_old_attribute_sets_the_new_one() -> None:
    memory = MemoryArgs()
    with pytest.warns(DeprecationWarning, match=r"memory\.key\.alpha"):
        memory.alpha = 0.9
    with pytest.warns(DeprecationWarning, match=r"memory\.fusion\.form"):
        memory.fusion = "sequence"
    assert (memory.key.alpha, memory.fusion.form) == (0.9, "sequence")
    assert copy.deepcopy(memory) == pickle.loads(pickle.dumps(memory)) == memory


def test_old_names_of_the_perceiver_go_together() -> None:
    with pytest.warns(DeprecationWarning, match=r"memory\.perceiver"):
        memory = MemoryArgs(compressor="x", compress={"epochs": 2.0})
    assert (memory.perceiver.path, memory.perceiver.epochs) == ("x", 2.0)


@pytest.mark.parametrize(
    "memory",
    [
        {"fusion_args": None},
        {"fusion": {"args": None}},
        {"fusion": None, "key": None, "bank": None, "perceiver": None},
        {"compress": None, "compressor": "p"},
    ],
)
def test_null_means_the_default(tmp_path: Path, memory: dict) -> None:
    found = load_recipe(written(tmp_path, memory)).memory
    assert (found.fusion.form, found.key.kind, found.bank.path) == ("width", "pooled", None)
    assert found.perceiver.path == memory.get("compressor")


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({1: 2}, "1"),
        ({"control": ["a"]}, "control"),
        ({"alpha": 0.1, "key": {"alpha": 0.2}}, r"memory\.key\.alpha stands there twice"),
        ({"key": {"alpha": 0.2}, "alpha": 0.1}, r"memory\.key\.alpha stands there twice"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path, memory: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(written(tmp_path, memory))


def test_old_names_inside_a_mapping_are_taken_too() -> None:
    assert load_recipe("phi-2-clip", ["--memory", "{alpha: 0.2}"]).memory.key.alpha == 0.2
    assert load_recipe("phi-2-clip", {"memory": {"alpha": 0.3}}).memory.key.alpha == 0.3


def test_an_old_argument_leaves_the_group_that_it_was_copied_from() -> None:
    first = MemoryArgs(bank=BankArgs(captions="all"))
    with pytest.warns(
        DeprecationWarning, match=r"memory\.entries is now called memory\.bank\.entries"
    ):
        second = replace(first, entries=3)
    assert (first.bank.entries, second.bank.entries) == (100_000, 3)
    assert second.bank.captions == "all"
