"""A setting that does nothing is said when a recipe is read."""

from __future__ import annotations

import logging

import pytest

from tinyalign.training.recipe.files import load_recipe, shipped_recipes
from tinyalign.training.recipe.without_effect import without_effect

SEQUENCE = {"memory.fusion.form": "sequence"}


@pytest.mark.parametrize("name", shipped_recipes())
def test_no_shipped_recipe_has_one(name: str) -> None:
    assert without_effect(load_recipe(name)) == []
    assert without_effect(load_recipe(name, {"memory.k": 0})) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory.fusion.latents_used": 8}, "memory.fusion.latents_used does nothing with form"),
        ({"memory.fusion.closed_form": False}, "does nothing without linear_skip"),
        ({**SEQUENCE, "memory.fusion.args": {"prompt_last": True}}, "without prompt_tokens"),
        ({"memory.key.kind": "aligned", "memory.key.alpha": 0.3}, "alpha does nothing with kind"),
        ({"memory.bank.path": "b", "memory.bank.captions": "all"}, "bank.captions does nothing"),
        ({"memory.bank.path": "b", "memory.perceiver.epochs": 2}, "perceiver.epochs does nothing"),
        ({"memory.bank.path": "b", "memory.perceiver.path": "c"}, "perceiver.path does nothing"),
        ({"memory.perceiver.path": "c", "memory.perceiver.epochs": 2}, "perceiver.epochs does"),
        ({"memory.control": "soft_prompt", "memory.bank.captions": "all"}, "reads no bank"),
        ({"data.finetune": None, "finetune.epochs": 2}, "finetune does nothing without data"),
        ({"finetune.lora.r": 4}, "finetune.lora does nothing unless"),
        ({"pretrain.early_stopping_min_delta": 0.1}, "does nothing without early_stopping"),
        ({"pretrain.micro_tokens": 99, "pretrain.micro_batch_size": 2}, "with micro_tokens"),
        ({"pretrain.vision_learning_rate": 0.1}, "while vision is frozen"),
        ({"pretrain.eval_batch_size": 4}, "without data.pretrain_eval"),
        ({"data.pretrain.shuffle_buffer": 4}, "does nothing without streaming"),
        ({"data.cache": "none", "data.cache_dtype": "float32"}, "cache_dtype does nothing with"),
    ],
)
def test_a_setting_without_effect_is_named_with_the_reason(
    settings: dict, says: str, caplog
) -> None:
    with caplog.at_level(logging.WARNING, logger="tinyalign"):
        recipe = load_recipe("phi-2-siglip", settings)
    assert any(says in line for line in without_effect(recipe)), without_effect(recipe)
    assert any(says in line for line in caplog.messages)


def test_what_has_an_effect_is_not_mentioned() -> None:
    settings = {
        **SEQUENCE,
        "memory.fusion.latents_used": 8,
        "memory.fusion.linear_skip": True,
        "memory.fusion.closed_form": False,
        "memory.fusion.args": {"prompt_tokens": 2, "prompt_last": True},
        "memory.key.alpha": 0.2,
        "memory.perceiver.epochs": 2,
        "finetune.language": "lora",
        "finetune.lora.r": 4,
    }
    assert without_effect(load_recipe("phi-2-siglip", settings)) == []
