"""The trainer: loss over supervised tokens whatever the split, order by seed, rates by part."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from tinyalign.data.collator import Collator, PackedCollator
from tinyalign.training.batches.micro_batches import SeededOrder
from tinyalign.training.loop.arguments import planned_steps
from tinyalign.training.loop.trainer import TinyAlignTrainer
from tinyalign.training.machine.compiling import compile_layers, undo_compile
from tinyalign.training.metering.metrics_log import MetricsLog
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs, evaluation_steps
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun
from tinyalign.training.weights.freeze import freeze


def stage_run(recipe: Recipe) -> StageRun:
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True, exist_ok=True)
    return StageRun(recipe, folder, "pretrain")


def trainer_of(shop: StageRun) -> TinyAlignTrainer:
    recipe = shop.recipe
    dataset = shop.dataset(recipe.data.pretrain)
    freeze(shop.model, shop.args)
    trainer = shop._trainer(dataset, None, MetricsLog(shop.folder.path / "metrics.jsonl"))
    trainer.create_optimizer()
    return trainer


def plain_loss(shop: StageRun, items: list[dict]) -> torch.Tensor:
    """Mean over supervised tokens of the full logits' cross-entropy, spelled out."""
    batch = Collator(shop.processor.tokenizer.pad_token_id)(items)
    labels = batch.pop("labels")
    for name in ("index", "n_supervised"):
        batch.pop(name)
    logits = shop.model(**batch).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )


def gradients(trainer: TinyAlignTrainer, items: list[dict], micro: int) -> tuple[float, dict]:
    """Loss and gradients of one step over `items` in micro-batches, as the Trainer takes it."""
    batches = [
        trainer.data_collator(items[start : start + micro]) for start in range(0, len(items), micro)
    ]
    batches, n_items = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.model.zero_grad()
    loss = sum(trainer.training_step(trainer.model, batch, n_items).item() for batch in batches)
    return loss, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_the_loss_is_the_mean_over_supervised_tokens_however_it_is_accumulated(recipe) -> None:
    shop = stage_run(recipe)
    trainer = trainer_of(shop)
    items = [shop.dataset(recipe.data.pretrain)[i] for i in range(4)]
    items[0]["labels"] = [-100 if i % 2 else v for i, v in enumerate(items[0]["labels"])]
    wanted = plain_loss(shop, items).item()
    whole, gradient = gradients(trainer, items, micro=4)
    assert math.isclose(whole, wanted, rel_tol=1e-5)
    for micro in (2, 1):
        loss, split = gradients(trainer, items, micro)
        assert math.isclose(loss, wanted, rel_tol=1e-5)
        for name, value in gradient.items():
            torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)


def curve(recipe: Recipe, name: str, **settings) -> list[dict]:
    """The steps of a run of a recipe with other settings of its stage."""
    stage = replace(recipe.pretrain, **settings)
    shop = stage_run(replace(recipe, pretrain=stage, output=f"{recipe.output}-{name}"))
    shop.run()
    lines = (shop.folder.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(lines: list[dict]) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_no_split_and_no_layout_changes_the_curve(recipe) -> None:
    """Whole steps, micro-batches, a budget; packed or padded; with memory drop-out."""
    recipe = replace(recipe, memory=replace(recipe.memory, drop_probability=0.5))
    whole = curve(recipe, "whole")
    held_out = [line["eval_loss"] for line in whole if "eval_loss" in line]
    filled_up = [line["padding"] for line in whole if "loss" in line]
    for name, settings in {
        "padded": {"packing": False},
        "micro": {"micro_batch_size": 2},
        "budget": {"micro_tokens": 160},
        "padded-micro": {"packing": False, "micro_batch_size": 1},
    }.items():
        lines = curve(recipe, name, **settings)
        assert losses(lines) == pytest.approx(losses(whole), rel=1e-5)
        found = [line["eval_loss"] for line in lines if "eval_loss" in line]
        assert found == pytest.approx(held_out, rel=1e-5)
        keys = ("samples", "supervised_tokens")
        assert [[x.get(k) for k in keys] for x in lines] == [
            [x.get(k) for k in keys] for x in whole
        ]
        if name == "padded":
            padding = [line["padding"] for line in lines if "loss" in line]
            assert sum(filled_up) < sum(padding)


def test_packed_and_padded_steps_have_the_same_gradients(recipe) -> None:
    stage = replace(recipe.pretrain, language="full", batch_size=8)
    results = []
    for packing in (True, False):
        stage = replace(stage, packing=packing)
        shop = stage_run(replace(recipe, pretrain=stage, output=f"{recipe.output}-{packing}"))
        trainer = trainer_of(shop)
        assert isinstance(trainer.data_collator, PackedCollator) == packing
        items = [shop.dataset(recipe.data.pretrain)[i] for i in range(8)]
        results.append(gradients(trainer, items, micro=8))
    (packed, found), (padded, wanted) = results
    assert math.isclose(packed, padded, rel_tol=1e-6)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_samples_are_packed_unless_told_otherwise(recipe, compiled) -> None:
    model = replace(recipe.model, compile=compiled)
    trainer = trainer_of(stage_run(replace(recipe, model=model)))
    assert trainer.split.layout == "packed"


def test_a_model_that_cannot_pack_is_padded(recipe, monkeypatch) -> None:
    monkeypatch.setattr("tinyalign.model.packing.attention.keeps_apart", lambda llm: False)
    trainer = trainer_of(stage_run(recipe))
    assert type(trainer.data_collator) is Collator
    assert trainer.split.layout == "padded"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = SeededOrder(50, seed=3)
    first = list(order)
    torch.rand(5)
    assert list(SeededOrder(50, seed=3)) == first
    assert sorted(first) == list(range(50))
    order.set_epoch(1)
    assert list(order) != first
    assert list(SeededOrder(50, seed=4)) != first


def test_each_part_has_its_own_rate(recipe) -> None:
    stage = replace(
        recipe.pretrain, language="full", connector_learning_rate=2e-3, weight_decay=0.1
    )
    shop = stage_run(replace(recipe, pretrain=stage))
    trainer = trainer_of(shop)
    seen = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            seen[id(parameter)] = (group["lr"], group["weight_decay"])
    model = shop.model.model
    assert seen[id(model.multi_modal_projector.output.weight)] == (2e-3, 0.1)
    assert seen[id(model.memory_connector.fusion.mlp.output.bias)] == (2e-3, 0.0)
    assert seen[id(model.language_model.layers[0].self_attn.q_proj.weight)] == (1e-3, 0.1)
    trained = [p for p in shop.model.parameters() if p.requires_grad]
    assert len(seen) == len(trained)


def test_memory_drop_out_takes_away_all_memories_of_a_sample(recipe) -> None:
    shop = stage_run(replace(recipe, memory=replace(recipe.memory, drop_probability=0.5)))
    trainer = trainer_of(shop)
    mask = trainer._dropped(torch.ones(400, 2, dtype=torch.bool), torch.arange(400))
    assert torch.equal(mask[:, 0], mask[:, 1])
    assert 160 < int(mask[:, 0].sum()) < 240


def test_memories_are_kept_in_evaluation(recipe) -> None:
    dropped = replace(recipe, memory=replace(recipe.memory, drop_probability=0.9))
    losses = [trainer_of(stage_run(r)).sample_losses for r in (recipe, dropped)]
    data = stage_run(recipe).dataset(recipe.data.pretrain)
    assert losses[0](data) == losses[1](data)


def test_single_losses_add_up_to_the_plain_loss(recipe) -> None:
    shop = stage_run(recipe)
    trainer = trainer_of(shop)
    data = shop.dataset(recipe.data.pretrain_eval, held_out=True)
    before = torch.get_rng_state()
    rows = trainer.sample_losses(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["id"] for row in rows] == [f"pair-{i}" for i in range(100, 106)]
    total = sum(row["loss_sum"] for row in rows) / sum(row["tokens"] for row in rows)
    with torch.no_grad():
        wanted = plain_loss(shop, [data[i] for i in range(6)]).item()
    assert math.isclose(total, wanted, rel_tol=1e-5)


def test_frozen_parts_stay_in_evaluation_mode(recipe) -> None:
    shop = stage_run(recipe)
    trainer = trainer_of(shop)
    items = [shop.dataset(recipe.data.pretrain)[i] for i in range(2)]
    gradients(trainer, items, micro=2)
    assert not shop.model.model.language_model.training
    assert not shop.model.model.vision_tower.training
    assert shop.model.model.multi_modal_projector.training


def test_checkpointed_activations_change_nothing(recipe) -> None:
    items, results = None, []
    for wanted in (False, True):
        stage = replace(recipe.pretrain, gradient_checkpointing=wanted)
        shop = stage_run(replace(recipe, pretrain=stage, output=f"{recipe.output}-{wanted}"))
        trainer = trainer_of(shop)
        items = items or [shop.dataset(recipe.data.pretrain)[i] for i in range(2)]
        results.append(gradients(trainer, items, micro=2))
        assert shop.model.model.language_model.training == wanted
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value)


def test_compiling_layers_can_be_undone(recipe) -> None:
    model = stage_run(recipe).model
    loss = model.loss_function
    assert not compile_layers(model, "off", 10_000)
    assert not compile_layers(model, "auto", 10)
    assert compile_layers(model, "on", 10)
    layer = model.model.language_model.layers[0]
    assert "forward" in vars(layer)
    assert model.loss_function is not loss
    undo_compile(model)
    assert "forward" not in vars(layer)
    assert model.loss_function is loss


def test_evaluation_steps() -> None:
    assert evaluation_steps([0.0, 0.25, 0.5, 1.0], 375) == {0, 94, 188, 375}
    assert evaluation_steps([0.001], 10) == {1}


def test_planned_steps() -> None:
    stage = StageArgs(batch_size=16, epochs=2)
    assert planned_steps(stage, 6000) == 750
    assert planned_steps(replace(stage, micro_batch_size=4), 6000) == 750
    assert planned_steps(stage, 6001) == 752
    assert planned_steps(replace(stage, max_steps=7), 6000) == 7
