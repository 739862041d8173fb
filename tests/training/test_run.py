"""A run from raw pairs to a model folder."""

from __future__ import annotations

from tinyalign.training.recipe import Recipe
from tinyalign.training.run import train


def test_both_stages(two_stage_recipe: Recipe) -> None:
    result = train(two_stage_recipe)
    print(result)
