"""Two processes train what one does: DDP, FSDP2 and ZeRO, both stages, over gloo on CPUs."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tinyalign.model.registration import register
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run import train

from .launching import finished, said, start

# As docs/scale.md states them, for float32: the same sums in another order.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-5


@pytest.fixture
def stages(two_stage_recipe: Recipe) -> Recipe:
    """Both stages with memory drop-out, 4 steps each of 4 samples; the last has 1 left, so that
    one of two processes has none."""
    recipe = two_stage_recipe
    stage = replace(recipe.pretrain, batch_size=4, weight_decay=0.01, eval_batch_size=4)
    return replace(
        recipe,
        data=replace(
            recipe.data,
            pretrain=replace(recipe.data.pretrain, limit=13),
            finetune=DataSource(recipe.data.finetune.path, limit=13),
            finetune_eval=recipe.data.pretrain_eval,
        ),
        memory=replace(recipe.memory, drop_probability=0.4),
        pretrain=stage,
        finetune=replace(stage, language="full", connector_learning_rate=5e-4),
    )


def sharing(name: str) -> dict[str, str]:
    """What `accelerate launch` makes of a shipped configuration, as far as sharing out goes."""
    path = resources.files("tinyalign") / "recipes" / "accelerate" / f"{name}.yaml"
    words = ["--config_file", str(path), "--num_processes", "2", "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, made = prepare_deepspeed_cmd_env(args)
    else:
        made = prepare_multi_gpu_env(args)
    ours = ("FSDP", "ACCELERATE_USE_", "ACCELERATE_DEEPSPEED", "ACCELERATE_CONFIG_DS")
    return {k: v for k, v in made.items() if k.startswith(ours)}


def needs(name: str) -> None:
    """Skip where the package of a configuration is missing."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")


def launched(recipe: Recipe, name: str = "ddp", **settings) -> Path:
    """A run by two processes, to its end."""
    recipe = replace(recipe, output=f"{recipe.output}-{name}")
    processes = start(recipe, processes=2, environment=sharing(name), **settings)
    assert finished(processes) == [0, 0], said(recipe)
    return Path(recipe.output)


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, totals, held-out samples and weights of all stages."""
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    assert len(lines) == len(others) == 10  # four steps and an evaluation a stage
    for line, second in zip(lines, others):
        for name in ("step", "samples", "supervised_tokens", "eval_samples", "eval_tokens"):
            assert line.get(name) == second.get(name), name
        name = "loss" if "loss" in line else "eval_loss"
        assert second[name] == pytest.approx(line[name], rel=LOSS_TOLERANCE)
    for stage in ("pretrain", "finetune"):
        rows, second_rows = (
            [json.loads(x) for x in (folder / stage / "eval-4.jsonl").read_text().splitlines()]
            for folder in (one, other)
        )
        assert [row["id"] for row in rows] == [row["id"] for row in second_rows]
        weights, second = (
            load_file(folder / stage / "model" / "model.safetensors") for folder in (one, other)
        )
        assert weights.keys() == second.keys()
        for name, value in weights.items():
            torch.testing.assert_close(
                second[name],
                value,
                rtol=0,
                atol=WEIGHT_TOLERANCE,
                msg=lambda m, n=name: f"{n}: {m}",
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_processes_train_what_one_does(stages: Recipe, name: str) -> None:
    """And the model of each strategy loads as any other."""
    needs(name)
    one = train(stages).folder
    register()
    plain = AutoModelForImageTextToText.from_pretrained(one / "model")
    two = launched(stages, name)
    assert_same_run(one, two)
    assert (one / "model/config.json").read_text() == (two / "model/config.json").read_text()
    model = AutoModelForImageTextToText.from_pretrained(two / "model")
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_adapters_of_two_processes_are_those_of_one(stages: Recipe) -> None:
    pytest.importorskip("peft")
    recipe = replace(stages, finetune=replace(stages.finetune, language="lora"))
    assert_same_run(train(recipe).folder, launched(recipe))


@pytest.mark.slow
def test_in_bfloat16_two_processes_stay_close_to_one(stages: Recipe) -> None:
    """Sums in another order are other numbers there: within 0.5 %, as bfloat16 is of float32."""
    recipe = replace(stages, model=replace(stages.model, dtype="bfloat16"))
    one, two = (
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        for folder in (train(recipe).folder, launched(recipe))
    )
    assert len(one) == 8
    assert two == pytest.approx(one, rel=5e-3)


@pytest.mark.slow
def test_the_split_of_a_step_changes_nothing(stages: Recipe) -> None:
    """Four samples a step: one process at once, two with two each, two with accumulation."""
    one = train(stages).folder
    micro = {
        name: replace(getattr(stages, name), micro_batch_size=1)
        for name in ("pretrain", "finetune")
    }
    assert_same_run(one, launched(replace(stages, **micro)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_launch_that_is_killed_goes_on_to_the_same_bits(stages: Recipe, name: str) -> None:
    needs(name)
    # A rehearsal would count among the steps of the process that is to die.
    settings = {"checkpoint_steps": 2, "rehearse": False}
    first, second = replace(stages.pretrain, **settings), replace(stages.finetune, **settings)
    recipe = replace(stages, pretrain=first, finetune=second)
    whole = launched(replace(recipe, output=f"{recipe.output}-whole"), name)
    killed = replace(recipe, output=f"{recipe.output}-{name}")
    processes = start(killed, processes=2, environment=sharing(name), dies=("step", 7), who=1)
    assert 0 not in finished(processes), said(killed)
    resumed = launched(recipe, name)
    assert "going on from checkpoint-2" in (resumed / "log.txt").read_text()
    keys = ("step", "loss", "samples", "eval_loss")
    curves = [
        [[line.get(key) for key in keys] for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_where_the_first_process_stops_the_others_say_why(stages: Recipe) -> None:
    broken = Path(stages.output).with_name("broken.json")
    broken.write_text("[{")
    recipe = replace(stages, data=replace(stages.data, pretrain=DataSource(str(broken))))
    assert 0 not in finished(start(recipe, processes=2))
    other = (Path(recipe.output) / "said-1.txt").read_text()
    assert "the first process stopped: " in other
    assert "broken.json" in other
