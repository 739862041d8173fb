"""A recipe's settings one by one, as help and options have them."""

from __future__ import annotations

import inspect

import pytest

from tinyalign.errors import ConfigError
from tinyalign.model.forms import FUSIONS, IMAGE_CONNECTORS
from tinyalign.training.recipe.fields import settings_of
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.recipe.recipe import Recipe

SETTINGS = {one.name: one for one in settings_of(Recipe)}
GIVEN = {"self", "config", "width", "text_width", "token_rms"}
"""What a form is given by the model itself."""


def test_every_setting_says_what_it_is_for() -> None:
    assert len(SETTINGS) > 120
    assert all(one.doc for one in SETTINGS.values())


def test_names_types_and_defaults() -> None:
    rate = SETTINGS["finetune.learning_rate"]
    assert (rate.option, rate.type, rate.default) == ("--finetune.learning-rate", float, 2e-5)
    assert SETTINGS["pretrain.learning_rate"].default == 1e-3
    assert SETTINGS["data.strict"].is_flag
    assert not SETTINGS["memory.k"].is_flag
    assert SETTINGS["data.finetune.path"].default == ""  # of a source that may be absent
    assert SETTINGS["memory.perceiver.epochs"].default == 1.0


@pytest.mark.parametrize(
    ("setting", "registry"),
    [("memory.fusion.args", FUSIONS), ("model.connector_args", IMAGE_CONNECTORS)],
)
def test_help_names_every_argument_of_every_form(setting: str, registry) -> None:
    doc = SETTINGS[setting].doc
    for name, form in registry.items():
        own = [one for one in inspect.signature(form.__init__).parameters if one not in GIVEN]
        told = doc.partition(f"{name}:")[2].partition(".")[0].split(",")
        assert [one.strip() for one in told] == (own or ["none"]), name


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--data.strict"], True),
        (["--data.strict", "--seed", "3"], True),
        (["--data.strict", "false"], False),
        (["--data.strict=true"], True),
        (["--no-data.strict"], False),
        (["--data.strict", "yes"], True),
    ],
)
def test_a_flag_needs_no_value(words: list[str], value: bool) -> None:
    assert load_recipe("phi-2-clip", words).data.strict is value


def test_an_option_without_its_value_does_not_swallow_the_next() -> None:
    with pytest.raises(ConfigError, match=r"memory\.key"):
        load_recipe("phi-2-clip", ["--memory.key", "--memory.k", "3"])


def test_hyphens_are_taken_for_underscores_and_values_keep_theirs() -> None:
    words = ["--pretrain.learning-rate=0.01", "--data.pretrain.image-folder", "a_b-c"]
    recipe = load_recipe("phi-2-clip", words)
    assert recipe.pretrain.learning_rate == 0.01
    assert recipe.data.pretrain.image_folder == "a_b-c"
