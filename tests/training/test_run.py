"""A run from raw pairs to a model folder: what it writes, resuming, the baseline, the controls."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tinyalign.data.readers import open_dataset
from tinyalign.errors import ConfigError, DataError
from tinyalign.memory.attach import attach_memory
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.perceiver import Perceiver, load_perceiver
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.model.registration import register
from tinyalign.training.loop.trainer import TinyAlignTrainer
from tinyalign.training.metering.metrics_log import STEP_KEYS, read_metrics
from tinyalign.training.metering.throughput import MEASURES
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.recipe.memory import BankArgs, FusionArgs, KeyArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun


def steps_of(folder: Path) -> list[dict]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return weights_in(folder / "model")


def weights_in(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def test_two_trainings_do_not_share_a_folder(monkeypatch, recipe: Recipe) -> None:
    monkeypatch.setattr("tinyalign.training.run_folder.LAST_WORKERS", 0.1)
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    with folder.held(), pytest.raises(ConfigError, match="another process is training"):
        train(recipe)
    assert not (folder.path / "metrics.jsonl").exists()
    train(recipe)


def test_a_one_stage_run_folder(recipe: Recipe) -> None:
    result = train(recipe)
    folder = Path(recipe.output)
    assert load_recipe(folder / "config.yaml") == recipe
    steps = steps_of(folder)
    assert [tuple(line) for line in steps] == [(*STEP_KEYS, "tokens", *MEASURES[:-1])] * 6
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1]["samples"] == 24
    evaluations = [x for x in read_metrics(folder / "metrics.jsonl") if "eval_loss" in x]
    assert [line["step"] for line in evaluations] == [3, 6]
    for step in (3, 6):
        rows = [json.loads(x) for x in (folder / f"eval-{step}.jsonl").read_text().splitlines()]
        assert [set(row) for row in rows] == [{"id", "loss_sum", "tokens"}] * 6
    said = (folder / "log.txt").read_text()
    assert "language model: 0 trained" in said
    assert (
        len(re.findall(r"step \d of 6, loss .* tokens/s, .* waiting for data, .* left", said)) == 6
    )
    assert list((folder / "tensorboard").glob("events*"))
    assert not (folder / "checkpoints").exists()
    assert result.bank is not None
    assert result.stages[0].eval_loss == evaluations[-1]["eval_loss"]


def test_the_model_loads_as_transformers_models_do_and_takes_its_bank(recipe: Recipe) -> None:
    result = train(recipe)
    register()
    model = AutoModelForImageTextToText.from_pretrained(result.model)
    processor = AutoProcessor.from_pretrained(result.model)
    assert attach_memory(model, processor, result.bank).k == 2
    trained = weights(result.folder)
    name = "model.multi_modal_projector.output.weight"
    assert torch.equal(model.state_dict()[name], trained[name])
    perceiver = Perceiver.load(MemoryBank.open(result.bank).perceiver_folder)
    assert model.config.perceiver_hash == perceiver.hash
    config = json.loads((result.model / "config.json").read_text())
    assert not config["perceiver_config"].get("_name_or_path")
    sizes = ("vocab_size", "feature_dim", "num_latents", "d_latents", "input_mode")
    assert [getattr(model.config.perceiver_config, name) for name in sizes] == [
        getattr(perceiver.network.config, name) for name in sizes
    ]


def test_both_stages(two_stage_recipe: Recipe) -> None:
    result = train(two_stage_recipe)
    folder = result.folder
    first, second = steps_of(folder / "pretrain"), steps_of(folder / "finetune")
    both = steps_of(folder)
    assert [line["step"] for line in both] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in both] == [x["loss"] for x in (*first, *second)]
    assert both[-1]["samples"] == 48
    before, after = load_file(folder / "pretrain/model/model.safetensors"), weights(folder)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name], after[name])
    tower = [n for n in before if "vision_tower" in n]
    assert all(torch.equal(before[n], after[n]) for n in tower)


@pytest.mark.slow  # several runs
def test_stages_one_after_the_other_are_both_at_once(two_stage_recipe: Recipe) -> None:
    at_once = train(replace(two_stage_recipe, output=f"{two_stage_recipe.output}-both"))
    train(two_stage_recipe, stage="pretrain")
    apart = train(two_stage_recipe, stage="finetune")
    one, two = weights(at_once.folder), weights(apart.folder)
    assert all(torch.equal(one[name], two[name]) for name in one)


def interrupted(recipe: Recipe, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the loss was computed `calls` times, then stop as Ctrl-C does."""
    plain, seen = TinyAlignTrainer.compute_loss, []

    def stopping(self, *args, **kwargs):
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TinyAlignTrainer, "compute_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)


@pytest.mark.slow  # several runs
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(recipe: Recipe, monkeypatch) -> None:
    stage = replace(recipe.pretrain, epochs=2, micro_batch_size=2, checkpoint_steps=5)
    memory = replace(recipe.memory, drop_probability=0.3)
    recipe = replace(recipe, pretrain=stage, memory=memory)
    whole = train(replace(recipe, output=f"{recipe.output}-whole"))
    interrupted(recipe, 15, monkeypatch)  # in step 8 of 12, second epoch
    assert len(steps_of(Path(recipe.output))) == 7
    resumed = train(recipe)
    keys = [key for key in STEP_KEYS if key != "seconds"]
    curves = [[{k: line[k] for k in keys} for line in steps_of(r.folder)] for r in (whole, resumed)]
    assert curves[0] == curves[1]
    assert [
        x["eval_loss"] for x in read_metrics(whole.folder / "metrics.jsonl") if len(x) == 5
    ] == [x["eval_loss"] for x in read_metrics(resumed.folder / "metrics.jsonl") if len(x) == 5]
    one, two = weights(whole.folder), weights(resumed.folder)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("micro", [1, 4])
def test_a_run_goes_on_with_other_micro_batches_to_the_same_curve_up_to_rounding(
    recipe: Recipe, monkeypatch, micro: int
) -> None:
    stage = replace(recipe.pretrain, epochs=2, micro_batch_size=2, checkpoint_steps=5)
    recipe = replace(recipe, pretrain=stage)
    whole = train(replace(recipe, output=f"{recipe.output}-whole"))
    interrupted(recipe, 15, monkeypatch)  # in step 8 of 12, second epoch
    stage = replace(
        stage,
        micro_batch_size=micro,
        gradient_checkpointing=True,
        eval_batch_size=3,
        checkpoint_steps=2,
        keep_checkpoints=2,
    )
    saved: list[int] = []
    save = TinyAlignTrainer._save_checkpoint
    monkeypatch.setattr(
        TinyAlignTrainer,
        "_save_checkpoint",
        lambda self, *args: (saved.append(self.state.global_step), save(self, *args))[1],
    )
    resumed = train(replace(recipe, pretrain=stage))
    one, two = steps_of(whole.folder), steps_of(resumed.folder)
    for key in ("step", "samples", "supervised_tokens"):
        assert [line[key] for line in one] == [line[key] for line in two]
    assert [x["loss"] for x in one] == pytest.approx([x["loss"] for x in two], rel=1e-5)
    before, after = weights(whole.folder), weights(resumed.folder)
    assert all(torch.allclose(before[n], after[n], rtol=1e-3, atol=1e-5) for n in before)
    assert saved == [6, 8, 10, 12]


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_starts_over_when_asked(recipe: Recipe) -> None:
    train(recipe)
    folder = Path(recipe.output)
    written = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert train(recipe).stages[0].steps == 6
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == written
    train(recipe, resume=False)
    assert (folder / "metrics.jsonl").stat().st_mtime_ns > written


def test_another_recipe_in_the_same_folder_is_refused_by_name(recipe: Recipe) -> None:
    train(recipe)
    with pytest.raises(ConfigError, match=r"memory\.k 2 -> 0"):
        train(recipe.with_k(0))


def test_a_run_of_an_earlier_release_is_still_known(recipe: Recipe) -> None:
    train(recipe)
    note = Path(recipe.output) / "settings.json"
    settings = json.loads(note.read_text())
    bank = settings["memory"]["bank"]
    for part, name in ((settings["pretrain"], "weight_decay"), (bank, "values_dtype")):
        part.pop(name)  # as if the setting did not exist when the run was made
    note.write_text(json.dumps(settings))
    assert train(recipe).stages[0].steps == 6
    note.write_text(json.dumps(settings))
    later = replace(recipe, pretrain=replace(recipe.pretrain, weight_decay=0.5))
    with pytest.raises(ConfigError, match=r"weight_decay 0.0 -> 0.5"):
        train(later)


@pytest.mark.slow
def test_the_model_part_way_is_saved_where_asked(two_stage_recipe: Recipe) -> None:
    stage = replace(two_stage_recipe.finetune, save_fractions=[0.34, 1.0])
    model = replace(two_stage_recipe.model, dtype="bfloat16")
    result = train(replace(two_stage_recipe, finetune=stage, model=model))
    folder = result.folder / "finetune"
    saved = {p.name: p for p in folder.glob("model-*")}
    assert set(saved) == {"model-1", "model-3"}
    early, last, final = (weights_in(p) for p in (*sorted(saved.values()), result.model))
    assert early.keys() == final.keys()
    assert all(torch.equal(last[name], final[name]) for name in final)
    assert any(not torch.equal(early[name], final[name]) for name in final)
    assert {name: value.dtype for name, value in early.items()} == {
        name: value.dtype for name, value in final.items()
    }
    AutoModelForImageTextToText.from_pretrained(saved["model-1"])


def test_the_baseline_is_the_same_recipe_with_k_0(recipe: Recipe) -> None:
    result = train(recipe.with_k(0))
    assert result.bank is None
    assert not [name for name in weights(result.folder) if "memory" in name]
    config = json.loads((result.model / "config.json").read_text())
    assert config["memory_k"] == 0
    assert len(steps_of(result.folder)) == 6


def shop_of(recipe: Recipe, control: str = "none", k: int = 2) -> StageRun:
    memory = replace(recipe.memory, control=control, k=k)
    recipe = replace(recipe, memory=memory, output=f"{recipe.output}-{control}-{k}")
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    return StageRun(recipe, folder, "pretrain")


def test_arms_share_the_image_connectors_first_weights_and_the_order_of_samples(recipe) -> None:
    shops = [shop_of(recipe, k=0), shop_of(recipe), shop_of(recipe, "soft_prompt")]
    first = [shop.model.model.multi_modal_projector.state_dict() for shop in shops]
    for other in first[1:]:
        assert all(torch.equal(first[0][name], other[name]) for name in first[0])


def test_own_entries_are_never_neighbours_in_any_arm(recipe: Recipe) -> None:
    samples = open_dataset(recipe.data.pretrain.path)
    for control in ("none", "random", "another_sample", "untrained_perceiver"):
        dataset = shop_of(recipe, control).dataset(recipe.data.pretrain)
        assert dataset.neighbours is not None
        ids = dataset.neighbours.bank.ids
        for sample, rows in zip(samples, dataset.neighbours.table.indices.tolist()):
            assert sample.id not in [ids[row] for row in rows if row >= 0]


def test_controls_do_what_they_say(recipe: Recipe) -> None:
    shops = {
        control: shop_of(recipe, control)
        for control in ("none", "random", "another_sample", "untrained_perceiver")
    }
    data = {name: shop.dataset(recipe.data.pretrain) for name, shop in shops.items()}
    tables = {name: dataset.neighbours.table for name, dataset in data.items()}
    banks = {name: shop.bank for name, shop in shops.items()}
    true = tables["none"]
    # The same values, other rows for nearly every sample:
    for control in ("random", "another_sample"):
        assert banks[control].hash == banks["none"].hash
        same = (tables[control].indices[:, :2] == true.indices[:, :2]).all(dim=1)
        assert same.float().mean() < 0.3
    # The same rows, other values:
    assert torch.equal(tables["untrained_perceiver"].indices, true.indices)
    one, other = (banks[name].gather([0]) for name in ("none", "untrained_perceiver"))
    assert not torch.allclose(one, other, atol=0.1)


def test_a_soft_prompt_needs_no_bank_and_has_no_fewer_parameters(recipe: Recipe) -> None:
    prompt, memory = shop_of(recipe, "soft_prompt"), shop_of(recipe)
    assert prompt.bank is None
    assert "memory_values" not in prompt.dataset(recipe.data.pretrain)[0]
    sizes = [
        sum(p.numel() for p in shop.model.model.memory_connector.parameters())
        for shop in (prompt, memory)
    ]
    assert sizes[0] >= sizes[1]
    ids = [shop.dataset(recipe.data.pretrain)[0]["input_ids"] for shop in (prompt, memory)]
    assert ids[0] == ids[1]


def test_runs_share_perceiver_bank_and_neighbours(recipe: Recipe, monkeypatch) -> None:
    first = shop_of(recipe)
    first.dataset(recipe.data.pretrain)
    monkeypatch.setattr("tinyalign.training.prepare_memory.train_perceiver", None)  # would raise
    monkeypatch.setattr("tinyalign.training.prepare_memory.NeighbourTable.build", None)
    second = shop_of(replace(recipe, seed=9, output=f"{recipe.output}-again"))
    second.dataset(recipe.data.pretrain)
    assert first.bank.folder == second.bank.folder


def test_the_closed_form_start_is_used(recipe: Recipe) -> None:
    memory = replace(
        recipe.memory, fusion=FusionArgs(form="sequence", latents_used=8, linear_skip=True)
    )
    shop = shop_of(replace(recipe, memory=memory))
    fusion = shop.model.model.memory_connector.fusion
    assert not fusion.mlp.output.weight.any()
    note = json.loads((shop.folder.path / "memory.json").read_text())
    assert note["closed_form_r2"] <= 1
    drawn = shop_of(
        replace(
            recipe,
            memory=replace(memory, fusion=replace(memory.fusion, closed_form=False)),
            output=f"{recipe.output}-b",
        )
    )
    assert not torch.equal(
        drawn.model.model.memory_connector.fusion.skip.weight, fusion.skip.weight
    )


def test_what_the_perceiver_reads_back_goes_with_the_model(recipe: Recipe) -> None:
    memory = replace(
        recipe.memory, fusion=FusionArgs(form="sequence", latents_used=8, word_skip=True)
    )
    result = train(replace(recipe, memory=memory))
    network = load_perceiver(MemoryBank.open(result.bank)).network
    words = TinyAlignForConditionalGeneration.from_pretrained(
        result.model
    ).model.memory_connector.fusion.words
    assert torch.equal(words.readout, network.text_head.weight)
    assert torch.equal(words.bias, network.text_head.bias)
    assert words.table.any()


def test_a_bank_named_in_the_recipe_is_used(recipe: Recipe, tmp_path: Path) -> None:
    bank = shop_of(recipe).bank
    named = replace(recipe, memory=replace(recipe.memory, bank=BankArgs(path=str(bank.folder))))
    shop = shop_of(replace(named, output=str(tmp_path / "named")))
    assert MemoryBank.open(shop.bank.folder).hash == bank.hash


@pytest.mark.slow  # several runs
def test_without_a_cache_the_tower_runs_at_every_step_with_the_same_result(recipe: Recipe) -> None:
    live = replace(recipe, data=replace(recipe.data, cache="none"))
    cached, computed = train(recipe), train(replace(live, output=f"{recipe.output}-live"))
    one, two = ([line["loss"] for line in steps_of(r.folder)] for r in (cached, computed))
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "says"), [("finetune", "data.finetune"), ("third", "must be both")]
)
def test_a_stage_that_cannot_be_run_is_refused(recipe: Recipe, stage: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train(recipe, stage=stage)


def test_stage_two_without_stage_one_says_what_to_do(two_stage_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="run --stage pretrain first"):
        train(two_stage_recipe, stage="finetune")


def test_stage_two_of_another_run_must_have_the_same_k(two_stage_recipe: Recipe) -> None:
    first = train(two_stage_recipe, stage="pretrain")
    other = replace(
        two_stage_recipe.with_k(0), start_from=str(first.folder), output=f"{first.folder}-b"
    )
    with pytest.raises(ConfigError, match="made for k = 2"):
        train(other, stage="finetune")


def test_a_bad_picture_and_an_empty_conversation_are_left_out_and_listed(
    recipe: Recipe, pairs: Path, tmp_path: Path
) -> None:
    records = json.loads(pairs.read_text())
    records[3]["image"] = "gone.png"
    records[5]["conversations"] = records[5]["conversations"][:1]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(records))
    source = replace(recipe.data.pretrain, path=str(mixed), image_folder=str(pairs.parent))
    train(replace(recipe.with_k(0), data=replace(recipe.data, pretrain=source)))
    skipped = json.loads((Path(recipe.output) / "skipped.json").read_text())
    assert set(skipped) == {"pair-3", "pair-5"}
    assert "gone.png" in skipped["pair-3"]


def test_a_cut_shard_is_trained_on_up_to_its_break_and_listed_or_stops_a_strict_run(
    recipe: Recipe, shards: str, tmp_path: Path
) -> None:
    cut = Path(shards).parent / "1.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    data = replace(recipe.data, pretrain=DataSource(shards))
    assert recipe.memory.k > 0
    result = train(replace(recipe, data=data))
    assert 16 < result.stages[0].samples < 24
    left_out = json.loads((result.folder / "skipped.json").read_text())
    assert list(left_out) == ["1.tar"]
    assert "shard 1.tar: " in left_out["1.tar"]
    strict = replace(data, strict=True, cache_folder=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"shard 1\.tar: .*fetch it again"):
        train(replace(recipe, data=strict, output=str(tmp_path / "strict")))


@pytest.mark.slow  # several runs
def test_training_takes_odd_pictures_and_leaves_out_broken_ones(
    recipe: Recipe, pairs: Path, tmp_path: Path
) -> None:
    """Ten megapixels, grey and RGBA are learned from, by bank and both stages' path alike;
    a truncated and a missing file are left out and listed, or stop a strict run."""
    colours = Image.open(pairs.parent / "0.png")
    colours.resize((4000, 3000)).save(tmp_path / "large.jpg")
    colours.convert("L").save(tmp_path / "grey.png")
    colours.convert("RGBA").save(tmp_path / "clear.png")
    whole = io.BytesIO()
    colours.resize((640, 480)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    records = json.loads(pairs.read_text())
    odd = ["large.jpg", "grey.png", "clear.png", "cut.jpg", "gone.jpg"]
    for i, record in enumerate(records):
        record["image"] = str(tmp_path / odd[i] if i < 5 else pairs.parent / record["image"])
    (tmp_path / "odd.json").write_text(json.dumps(records))
    data = replace(recipe.data, pretrain=DataSource(str(tmp_path / "odd.json")))
    result = train(replace(recipe, data=data))
    skipped = json.loads((result.folder / "skipped.json").read_text())
    assert set(skipped) == {"pair-3", "pair-4"}
    assert "cut.jpg" in skipped["pair-3"]
    assert "gone.jpg" in skipped["pair-4"]
    assert result.stages[0].samples == 22
    assert "2 samples left out" in (result.folder / "log.txt").read_text()
    assert set(MemoryBank.open(result.bank).ids) == {r["id"] for r in records} - set(skipped)
    strict = replace(data, strict=True, cache_folder=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cut\.jpg"):
        train(replace(recipe, data=strict, output=str(tmp_path / "strict")))


def test_what_loader_processes_leave_out_is_listed_too(
    recipe: Recipe, pairs: Path, tmp_path: Path
) -> None:
    records = json.loads(pairs.read_text())
    records[5]["conversations"] = records[5]["conversations"][:1]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(records))
    source = replace(recipe.data.pretrain, path=str(path), image_folder=str(pairs.parent))
    data = replace(recipe.data, pretrain=source, pretrain_eval=None, workers=1)
    result = train(replace(recipe.with_k(0), data=data))
    assert set(json.loads((result.folder / "skipped.json").read_text())) == {"pair-5"}


def test_a_bank_smaller_than_k_trains(recipe: Recipe) -> None:
    result = train(replace(recipe, memory=replace(recipe.memory, k=5, bank=BankArgs(entries=3))))
    assert len(MemoryBank.open(result.bank)) == 3
    assert len(steps_of(result.folder)) == 6
    assert all(line["loss"] > 0 for line in steps_of(result.folder))


@pytest.mark.parametrize("key", ["pooled", "attention", "aligned"])
def test_answers_never_reach_a_query(
    recipe: Recipe, questions: Path, tmp_path: Path, key: str
) -> None:
    """Two training sets that differ in their answers alone have the same neighbours."""
    records = json.loads(questions.read_text())
    for record in records:
        record["image"] = str(questions.parent / record["image"])
        record["conversations"][1]["value"] = "a purple house in the snow " * 3
    other = tmp_path / "other-answers.json"
    other.write_text(json.dumps(records))
    data = replace(recipe.data, pretrain=DataSource(str(questions)), pretrain_eval=None)
    recipe = replace(recipe, data=data, memory=replace(recipe.memory, key=KeyArgs(kind=key)))
    shop = shop_of(recipe)
    true = shop.dataset(recipe.data.pretrain).neighbours.table
    # Its own cache, so that the second table is searched and not found.
    changed = replace(data, pretrain=DataSource(str(other)), cache_folder=str(tmp_path / "cache"))
    memory = replace(recipe.memory, bank=BankArgs(path=str(shop.bank.folder)))
    again = replace(recipe, data=changed, memory=memory, output=str(tmp_path / "again"))
    table = shop_of(again).dataset(again.data.pretrain).neighbours.table
    assert torch.equal(table.indices, true.indices)
    assert torch.equal(table.scores, true.scores)
    assert (true.indices[:, 0] >= 0).all()
