"""A recipe's settings in `--help`: the ones most people set first, then all of them by group."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from tinyalign.training.recipe.fields import Setting, settings_of
from tinyalign.training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

FIRST = (
    "data.pretrain.path",
    "data.pretrain.image_folder",
    "data.pretrain_eval.path",
    "data.finetune.path",
    "model.language",
    "model.vision",
    "model.template",
    "memory.bank.path",
    "pretrain.epochs",
    "pretrain.batch_size",
    "pretrain.learning_rate",
    "seed",
    "device",
)
"""What a first run of one's own sets."""
SHORTENED = ("memory.k", "data.cache", "output")
"""Settings that `train` has a short option for; the long one is taken too."""
HEADS = {
    "data": "what is learned from",
    "model": "the parts of the model",
    "memory": "the memory",
    "pretrain": "stage 1",
    "finetune": "stage 2",
}


def add_recipe_options(parser: ArgumentParser) -> None:
    """Add an option for every setting of a recipe, in groups, for the help page alone."""
    found = {one.name: one for one in settings_of(Recipe)}
    first = parser.add_argument_group("settings of the recipe that a first run of your own has")
    for name in FIRST:
        _add(first, found[name])
    rest = [one for one in found.values() if one.name not in (*FIRST, *SHORTENED)]
    for head, those in groupby(rest, key=_head):
        about = f", {HEADS[head]}" if head in HEADS else ""
        group = parser.add_argument_group(f"{head}{about}" if head else "the run")
        for one in those:
            _add(group, one)


def _head(setting: Setting) -> str:
    """The group that a setting stands under, of two words at most."""
    return ".".join(setting.name.split(".")[:-1][:2])


def _add(group: Any, setting: Setting) -> None:
    group.add_argument(
        setting.option,
        type=setting.type,
        default=setting.default,
        help=setting.doc.replace("%", "%%"),
    )
