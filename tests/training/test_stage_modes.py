"""Whole runs of stage 2's modes: LoRA, QLoRA, end-to-end, averages, early stopping, memory off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tinyalign.data.collator import Collator
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.training.loop.trainer import TinyAlignTrainer
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import LoraArgs, StageArgs
from tinyalign.training.run import RunResult, train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun

FAST = StageArgs(learning_rate=3e-3, batch_size=8, language="full", checkpoint_steps=None)
LORA = replace(FAST, language="lora", lora=LoraArgs(r=4, dropout=0.1))


def with_stage(recipe: Recipe, name: str = "", **settings: Any) -> Recipe:
    """The recipe with other settings of its last stage, in a folder of its own."""
    stage = "pretrain" if recipe.data.finetune is None else "finetune"
    changed = {stage: replace(getattr(recipe, stage), **settings)}
    return replace(recipe, **changed, output=f"{recipe.output}{name}")


@pytest.fixture
def second_stage(two_stage_recipe: Recipe, held_out: Path) -> Recipe:
    """Both stages with stage 2 watched on held-out samples; its mode is the test's."""
    data = replace(two_stage_recipe.data, finetune_eval=DataSource(str(held_out)))
    return replace(two_stage_recipe, data=data, finetune=FAST)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: RunResult, two: RunResult) -> bool:
    first, second = weights(one.model), weights(two.model)
    return all(torch.equal(first[name], second[name]) for name in first)


def evaluations(result: RunResult) -> list[dict]:
    folder = result.folder / result.stages[-1].stage
    lines = read_metrics((folder if folder.is_dir() else result.folder) / "metrics.jsonl")
    return [line for line in lines if "eval_loss" in line]


def held_out_loss(recipe: Recipe, model: Any) -> float:
    """Mean loss of a model over the recipe's held-out samples, from full logits."""
    Path(recipe.output).mkdir(parents=True, exist_ok=True)
    shop = StageRun(recipe, RunFolder(recipe), "pretrain")
    source = recipe.data.finetune_eval or recipe.data.pretrain_eval
    data = shop.dataset(source, held_out=True)
    batch = Collator(shop.processor.tokenizer.pad_token_id)([data[i] for i in range(len(data))])
    labels = batch.pop("labels")
    for name in ("index", "n_supervised"):
        batch.pop(name)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    ).item()


def load(folder: Path) -> TinyAlignForConditionalGeneration:
    return TinyAlignForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def interrupted(recipe: Recipe, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the last stage and stop as Ctrl-C does, in the step after `step`."""
    plain = TinyAlignTrainer.compute_loss
    last = "pretrain" if recipe.data.finetune is None else "finetune"

    def stopping(self, *args, **kwargs):
        if self.stage is getattr(recipe, last) and self.state.global_step == step:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TinyAlignTrainer, "compute_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)


# -- adapters -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lora_leaves_a_plain_model_and_an_adapter_for_the_model_of_stage_one(second_stage) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    recipe = replace(second_stage, finetune=LORA)
    result = train(recipe)
    start, trained = result.folder / "pretrain" / "model", weights(result.model)
    before = weights(start)
    assert set(trained) == set(before)
    layer = "model.language_model.layers.0.mlp.up_proj.weight"
    table = "model.language_model.embed_tokens.weight"
    assert not torch.equal(trained[layer], before[layer])
    assert torch.equal(trained[table], before[table])
    said = result.stages[-1].eval_loss
    assert held_out_loss(recipe, load(result.model)) == pytest.approx(said, abs=1e-5)
    adapted = peft.PeftModel.from_pretrained(load(start), result.folder / "adapter")
    assert held_out_loss(recipe, adapted) == pytest.approx(said, abs=1e-5)
    assert "trained in adapters" in (result.folder / "log.txt").read_text()


@pytest.mark.slow
def test_an_interrupted_run_of_lora_with_averages_comes_to_the_same_weights(
    second_stage, monkeypatch
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    stage = replace(LORA, batch_size=4, checkpoint_steps=2, ema_decay=0.8)
    whole = train(replace(second_stage, finetune=stage, output=f"{second_stage.output}-whole"))
    recipe = replace(second_stage, finetune=stage)
    interrupted(recipe, 5, monkeypatch)
    resumed = train(recipe)
    assert "going on from checkpoint-4" in (resumed.folder / "log.txt").read_text()
    assert same_weights(whole, resumed)
    assert evaluations(whole)[-1]["eval_loss"] == evaluations(resumed)[-1]["eval_loss"]
    files = [result.folder / "adapter" / "adapter_model.safetensors" for result in (whole, resumed)]
    one, two = (load_file(path) for path in files)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_qlora_runs_resumes_and_saves_a_plain_model(second_stage, monkeypatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    stage = replace(LORA, language="qlora", checkpoint_steps=1)
    whole = train(replace(second_stage, finetune=stage, output=f"{second_stage.output}-whole"))
    recipe = replace(second_stage, finetune=stage)
    interrupted(recipe, 2, monkeypatch)
    resumed = train(recipe)
    assert same_weights(whole, resumed)
    said = whole.stages[-1].eval_loss
    assert held_out_loss(recipe, load(whole.model)) == pytest.approx(said, abs=1e-4)


# -- end to end -----------------------------------------------------------------------------------


def test_end_to_end_moves_every_part_each_at_its_own_rate(second_stage) -> None:
    data = replace(second_stage.data, cache="none")
    stage = replace(
        FAST,
        vision="full",
        learning_rate=1e-3,
        connector_learning_rate=2e-3,
        vision_learning_rate=5e-4,
        schedule="constant",
    )
    recipe = replace(second_stage.with_k(0), data=data, finetune=stage)
    result = train(recipe)
    before, after = weights(result.folder / "pretrain" / "model"), weights(result.model)
    # Adam's first steps are as long as the rate: three of them, the first in the warm-up's end.
    for part, rate in (("vision_tower", 5e-4), ("multi_modal", 2e-3), ("language_model", 1e-3)):
        moves = [(after[n] - before[n]).abs().max() for n in before if f"model.{part}" in n]
        assert rate < max(moves) < 3.1 * rate
    assert held_out_loss(recipe, load(result.model)) == pytest.approx(
        result.stages[-1].eval_loss, abs=1e-5
    )


# -- averages -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_averaged_weights_are_evaluated_and_saved(recipe: Recipe) -> None:
    stage = {"learning_rate": 1e-2, "schedule": "constant"}
    plain = train(with_stage(recipe, "-plain", **stage))
    averaged = train(with_stage(recipe, "-ema", **stage, ema_decay=0.9))
    losses = [
        [x["loss"] for x in read_metrics(r.folder / "metrics.jsonl") if "loss" in x]
        for r in (plain, averaged)
    ]
    assert losses[0] == losses[1]  # training itself is not touched
    assert not same_weights(plain, averaged)
    said = averaged.stages[0].eval_loss
    assert said != plain.stages[0].eval_loss
    assert held_out_loss(recipe, load(averaged.model)) == pytest.approx(said, abs=1e-5)


# -- early stopping -------------------------------------------------------------------------------

FROM_THE_SECOND = [i / 6 for i in range(2, 7)]


def hard_to_please(recipe: Recipe) -> Recipe:
    """Six steps, evaluated from the second one on, none of which gains a whole nat."""
    return with_stage(
        recipe,
        learning_rate=1e-2,
        eval_fractions=FROM_THE_SECOND,
        early_stopping=2,
        early_stopping_min_delta=1.0,
    )


def test_early_stopping_keeps_the_best_weights_and_says_so(recipe: Recipe) -> None:
    recipe = hard_to_please(recipe)
    result = train(recipe)
    stage, found = result.stages[0], evaluations(result)
    assert [line["step"] for line in found] == [2, 3, 4]
    assert (stage.steps, stage.kept_step, stage.stopped_early) == (4, 2, True)
    assert stage.eval_loss == found[0]["eval_loss"]
    assert stage.eval_loss != pytest.approx(found[-1]["eval_loss"], abs=1e-4)
    assert held_out_loss(recipe, load(result.model)) == pytest.approx(stage.eval_loss, abs=1e-5)
    noted = json.loads((result.folder / "finished.json").read_text())
    assert (noted["stopped_early"], noted["kept_step"]) == (True, 2)
    log = (result.folder / "log.txt").read_text()
    assert "no better held-out loss than that of step 2 in 2 evaluations" in log
    assert not (result.folder / "best").exists()
    assert train(recipe).stages[0] == stage  # finished, not run on


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_an_interrupted_run_stops_at_the_same_step_with_the_same_weights(
    recipe: Recipe, monkeypatch, ema_decay
) -> None:
    recipe = with_stage(hard_to_please(recipe), checkpoint_steps=1, ema_decay=ema_decay)
    whole = train(replace(recipe, output=f"{recipe.output}-whole"))
    assert whole.stages[0].steps == 4
    for step in (1, 2, 3):
        again = replace(recipe, output=f"{recipe.output}-{step}")
        interrupted(again, step, monkeypatch)
        resumed = train(again)
        assert resumed.stages[0].steps == whole.stages[0].steps
        assert resumed.stages[0].kept_step == whole.stages[0].kept_step
        assert same_weights(whole, resumed)


# -- memory on and off ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_held_out_loss_is_measured_with_memory_and_without(recipe: Recipe) -> None:
    plain = train(with_stage(recipe, "-plain"))
    result = train(with_stage(recipe, "-both", eval_without_memory=True))
    assert same_weights(plain, result)
    for one, both in zip(evaluations(plain), evaluations(result)):
        assert one["eval_loss"] == both["eval_loss"]
    last = evaluations(result)[-1]
    assert result.stages[0].eval_loss_without_memory == last["eval_loss_without_memory"]
    # As the model runs without a bank: the same samples encoded with no memory tokens at all.
    shop = StageRun(recipe.with_k(0), RunFolder(recipe), "pretrain")
    data = shop.dataset(recipe.data.pretrain_eval, held_out=True)
    assert "memory_values" not in data[0]
    wanted = held_out_loss(recipe.with_k(0), load(result.model))
    assert last["eval_loss_without_memory"] == pytest.approx(wanted, abs=1e-5)
    assert last["eval_loss_without_memory"] != last["eval_loss"]
    rows = [json.loads(x) for x in (result.folder / "eval-6.jsonl").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in rows)
    mean = sum(row["loss_sum_without_memory"] for row in rows) / tokens
    assert mean == pytest.approx(last["eval_loss_without_memory"])
    assert "without memory (6 samples)" in (result.folder / "log.txt").read_text()


def test_a_model_without_memory_is_evaluated_once(recipe: Recipe) -> None:
    result = train(with_stage(recipe.with_k(0), eval_without_memory=True))
    assert "eval_loss_without_memory" not in evaluations(result)[-1]


@pytest.mark.parametrize("setting", [{"early_stopping": 1}, {"eval_without_memory": True}])
def test_watching_needs_held_out_samples(recipe: Recipe, setting: dict) -> None:
    data = replace(recipe.data, pretrain_eval=None)
    with pytest.raises(Exception, match=r"needs held-out samples; name them in data\.pretrain_ev"):
        with_stage(replace(recipe, data=data), **setting)


# -- older runs -----------------------------------------------------------------------------------


def test_a_run_of_a_version_without_these_settings_can_be_gone_on_with(recipe: Recipe) -> None:
    result = train(recipe)
    note = result.folder / "settings.json"
    settings = json.loads(note.read_text())
    for name in ("lora", "ema_decay", "early_stopping_min_delta", "eval_without_memory"):
        del settings["pretrain"][name]
    note.write_text(json.dumps(settings))
    assert train(recipe).stages == result.stages
    finished = json.loads((result.folder / "finished.json").read_text())
    for name in ("kept_step", "stopped_early", "eval_loss_without_memory"):
        del finished[name]
    (result.folder / "finished.json").write_text(json.dumps(finished))
    assert train(recipe).stages[0].steps == 6
    with pytest.raises(Exception, match=r"pretrain\.eval_without_memory False -> True"):
        train(with_stage(recipe, eval_without_memory=True))
