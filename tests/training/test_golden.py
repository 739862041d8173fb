"""The loss curves of a tiny run of both stages are those that are kept in tests/golden.

They change only where the mathematics of training is meant to change. Then write them anew and
say in the commit why: TINYALIGN_GOLDEN=write make test ARGS=tests/training/test_golden.py
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run import train

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# Float32 on one thread. Other processors and torch builds sum in another order, and the Perceiver
# behind the memories learns in bfloat16, where that shows most.
TOLERANCE = 1e-3


def golden_recipe(recipe: Recipe, k: int) -> Recipe:
    """Six steps of stage 1 and six of stage 2: warm-up and decay, micro-batches, drop-out."""
    stage = replace(
        recipe.pretrain, learning_rate=1e-2, batch_size=4, micro_batch_size=2, weight_decay=0.05
    )
    return replace(
        recipe,
        data=replace(recipe.data, finetune_eval=recipe.data.pretrain_eval),
        memory=replace(recipe.memory, k=k, drop_probability=0.25 if k else 0.0),
        pretrain=stage,
        finetune=replace(stage, language="full", learning_rate=3e-3, connector_learning_rate=1e-2),
    )


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 2])
def test_the_loss_curves_are_the_golden_ones(two_stage_recipe: Recipe, k: int) -> None:
    folder = train(golden_recipe(two_stage_recipe, k)).folder
    found = {}
    for stage in ("pretrain", "finetune"):
        lines = read_metrics(folder / stage / "metrics.jsonl")
        found[stage] = {
            "loss": [line["loss"] for line in lines if "loss" in line],
            "eval_loss": [line["eval_loss"] for line in lines if "eval_loss" in line],
            "supervised_tokens": [x["supervised_tokens"] for x in lines if "loss" in x],
        }
    path = GOLDEN / f"two-stages-k{k}.json"
    if os.environ.get("TINYALIGN_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    for stage, curves in kept.items():
        for name, values in curves.items():
            assert found[stage][name] == pytest.approx(values, rel=TOLERANCE), (stage, name)
        assert curves["loss"][-1] < curves["loss"][0]  # it learns
