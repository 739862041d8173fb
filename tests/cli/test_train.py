"""Short forms of `tinyalign train`: they are the recipe's own settings by another name."""

from __future__ import annotations

from typing import Any

import pytest

from tinyalign.cli import train as verb
from tinyalign.cli.front.options import parse
from tinyalign.training.recipe.files import load_recipe


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["--cache", "pixels"], {"data.cache": "pixels"}),
        (["--k", "0"], {"memory.k": 0}),
        (["--out", "here"], {"output": "here"}),
        (["--data.cache", "none", "--data.cache_tokens", "false"],
         {"data.cache": "none", "data.cache_tokens": False}),
    ],
)  # fmt: skip
def test_a_short_form_sets_the_recipes_field(short: list[str], long: dict[str, Any]) -> None:
    args = parse(verb.train, "tinyalign train", ["--config", "phi-2-clip", *short])
    found = load_recipe(args.config, verb._overrides(args))
    assert found == load_recipe("phi-2-clip", long)
