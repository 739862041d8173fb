"""Settings by the names that they had: in files, as options and in Python."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

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
    with pytest.warns(DeprecationWarning, match=r"alpha is now called key\.alpha"):
        memory = MemoryArgs(alpha=0.1)
    assert memory.key == KeyArgs(alpha=0.1)
    with pytest.warns(DeprecationWarning, match=r"alpha is now called key\.alpha"):
        assert memory.alpha == 0.1
    with pytest.warns(DeprecationWarning, match=r"fusion\.form is now called|fusion"):
        assert MemoryArgs(fusion="sequence").fusion.form == "sequence"
    with pytest.warns(DeprecationWarning, match="compress is now called perceiver"):
        assert MemoryArgs(compress=PerceiverTraining(epochs=3.0)).perceiver.epochs == 3.0
    with pytest.raises(TypeError, match="nothing"):
        MemoryArgs(nothing=1)
    with pytest.raises(AttributeError, match="no setting 'nothing'"):
        _ = memory.nothing


def test_an_old_argument_leaves_the_group_that_it_was_copied_from() -> None:
    first = MemoryArgs(bank=BankArgs(captions="all"))
    with pytest.warns(DeprecationWarning, match="entries is now called bank"):
        second = replace(first, entries=3)
    assert (first.bank.entries, second.bank.entries) == (100_000, 3)
    assert second.bank.captions == "all"
