"""Training on a stream: items like those of the whole data set, and exact resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from tinyalign.data.readers import open_dataset, open_stream
from tinyalign.data.readers.shards.stream import Part
from tinyalign.errors import ConfigError, DataError
from tinyalign.training import stage_run
from tinyalign.training.batches import stream as module
from tinyalign.training.batches.stream import StreamDataset, read_ahead
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.data import DataSource, MixturePart
from tinyalign.training.recipe.memory import BankArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun

from ..launching import finished, said, start


@pytest.fixture
def streamed(recipe: Recipe, shards: str) -> Recipe:
    """Nine steps of four samples of the stream; bank and Perceiver out of the same tars."""
    stream = DataSource(shards, streaming=True, shuffle_buffer=8)
    return replace(
        recipe,
        data=replace(recipe.data, pretrain=stream, cache="features"),
        pretrain=StageArgs(
            batch_size=4, micro_batch_size=2, max_steps=9, eval_fractions=[1.0], checkpoint_steps=4
        ),
    )


def opened(recipe: Recipe) -> StageRun:
    """Stage 1 of a recipe, ready to make its data."""
    folder = RunFolder(recipe)
    folder.open_stage("pretrain", resume=True)
    return StageRun(recipe, folder, "pretrain")


def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(StreamDataset.__init__, "__kwdefaults__", {
        **StreamDataset.__init__.__kwdefaults__, "block": 5,
    })  # fmt: skip


def test_items_are_those_of_the_data_set_with_random_access(streamed, shards):
    shop = opened(streamed)
    whole = shop.dataset(DataSource(shards))
    by_text = {tuple(item["input_ids"]): item for item in map(whole.item, whole.indices)}
    items = list(islice(shop.stream(streamed.data.pretrain), 24))
    assert sorted(item["index"] for item in items) == list(range(24))
    assert len({tuple(item["input_ids"]) for item in items}) == 24
    for item in items:
        other = by_text[tuple(item["input_ids"])]
        assert item["labels"] == other["labels"]
        for name in ("memory_values", "memory_mask"):
            assert torch.equal(item[name], other[name])
        torch.testing.assert_close(item["memory_scores"], other["memory_scores"])
        assert torch.equal(item["vision_features"][0], other["vision_features"][0])


def test_by_default_nothing_is_kept_of_a_streams_images(streamed):
    recipe = replace(streamed, data=replace(streamed.data, cache="auto"))
    items = list(islice(opened(recipe).stream(recipe.data.pretrain), 4))
    assert all("pixel_values" in item and "vision_features" not in item for item in items)


def test_no_sample_gets_itself_as_a_memory(streamed, shards):
    shop = opened(streamed)
    samples = list(open_stream(shards, epochs=1))
    found = module.BlockSearch(shop.bank, streamed.memory)(samples, shop.features.cover(samples), 0)
    for sample, rows in zip(samples, found.table.indices.tolist()):
        assert sample.id not in {shop.bank.entries.at([row])[row].id for row in rows}


class StopAt(TrainerCallback):
    """Ends the process's training as a kill would: no saving, no tidying up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_goes_on_to_the_same_weights(streamed, tmp_path, monkeypatch, workers):
    whole, resumed = killed_and_resumed(streamed, tmp_path, monkeypatch, workers, micro=2)
    losses = [losses_of(run) for run in (whole, resumed)]
    assert len(losses[0]) == 9
    assert losses[0] == losses[1]
    weights = [(run.model / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_micro_batches(streamed, tmp_path, monkeypatch):
    whole, resumed = killed_and_resumed(streamed, tmp_path, monkeypatch, workers=0, micro=1)
    assert losses_of(resumed) == pytest.approx(losses_of(whole), rel=1e-5)


def losses_of(run):
    return [line["loss"] for line in read_metrics(run.folder / "metrics.jsonl") if "loss" in line]


def killed_and_resumed(streamed, tmp_path, monkeypatch, workers, micro):
    """A run in one go, and one that was killed and goes on with micro-batches of `micro`."""
    small_blocks(monkeypatch)
    streamed = replace(streamed, data=replace(streamed.data, workers=workers))
    whole = train(replace(streamed, output=str(tmp_path / "whole")))
    make = stage_run.StageRun._trainer

    def stopping(self, *args):
        trainer = make(self, *args)
        trainer.add_callback(StopAt(7))
        return trainer

    killed = replace(streamed, output=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(stage_run.StageRun, "_trainer", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    stage = replace(killed.pretrain, micro_batch_size=micro)
    return whole, train(replace(killed, pretrain=stage))


@pytest.mark.slow
def test_two_processes_share_a_stream_and_go_on_after_a_kill(streamed, tmp_path):
    # A rehearsal would count among the steps of the process that is to die.
    stage = replace(streamed.pretrain, rehearse=False)

    def run(name, code, **dies):
        recipe = replace(streamed, pretrain=stage, output=str(tmp_path / name))
        codes = finished(start(recipe, processes=2, **dies))
        assert all((found == 0) == (code == 0) for found in codes), said(recipe)
        return Path(recipe.output)

    whole = run("whole", 0)
    run("killed", -9, dies=("step", 6), who=1)
    resumed = run("killed", 0)
    assert "going on from checkpoint-4" in (resumed / "log.txt").read_text()
    losses = [
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        for folder in (whole, resumed)
    ]
    assert len(losses[0]) == 9
    assert losses[0] == losses[1]
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_mixture_trains_and_lists_what_was_left_out(streamed, shards, questions, pairs):
    folder = Path(shards).parent
    broken = folder / "1.tar"
    bank = train(replace(streamed, pretrain=replace(streamed.pretrain, max_steps=1))).bank
    broken.write_bytes(broken.read_bytes()[:3000])
    source = DataSource(
        streaming=True,
        shuffle_buffer=4,
        mixture=[MixturePart(shards, 2.0), MixturePart(str(questions), 1.0)],
    )
    recipe = replace(
        streamed,
        data=replace(streamed.data, pretrain=source),
        memory=replace(streamed.memory, bank=BankArgs(path=str(bank))),
        output=streamed.output + "-mixture",
    )
    result = train(recipe)
    assert result.stages[0].samples == 36
    left_out = json.loads((result.folder / "skipped.json").read_text())
    assert "1.tar" in left_out


def prepare_nothing(samples, number):
    raise DataError("no sample is good enough")


def test_a_stream_of_unusable_samples_ends_with_the_reason(shards):
    dataset = StreamDataset(open_stream(shards), prepare_nothing, block=4)
    with pytest.raises(DataError, match="none of the last 40 samples can be used: no sample is"):
        next(iter(dataset))
    with pytest.raises(DataError, match=r"^no sample is good enough"):
        next(iter(StreamDataset(open_stream(shards), prepare_nothing, strict=True)))


def test_a_checkpoint_of_other_processes_is_refused(shards, tmp_path):
    StreamDataset(open_stream(shards), prepare_nothing).save_position(tmp_path)
    part = Part(0, 3)
    other = StreamDataset(open_stream(shards, part=part), prepare_nothing, part=part)
    with pytest.raises(DataError, match="same number of processes"):
        other.load_position(tmp_path)


def test_reading_ahead_gives_the_same_and_passes_errors_on():
    assert list(read_ahead(iter(range(50)), 3)) == list(range(50))
    assert list(islice(read_ahead(iter(range(10**9)), 3), 5)) == list(range(5))  # and it ends

    def breaks():
        yield 1
        raise DataError("broken")

    found = read_ahead(breaks(), 3)
    assert next(found) == 1
    with pytest.raises(DataError, match="broken"):
        next(found)


def test_streams_need_a_number_of_steps(streamed):
    with pytest.raises(ConfigError, match=r"set pretrain\.max_steps"):
        replace(streamed, pretrain=StageArgs())


def test_a_budget_of_tokens_is_refused_for_a_stream(streamed):
    stage = replace(streamed.pretrain, micro_batch_size=None, micro_tokens=160)
    with pytest.raises(ConfigError, match=r"micro_tokens 160.*set pretrain\.micro_batch_size"):
        replace(streamed, pretrain=stage)
    listed = replace(streamed.data, pretrain=replace(streamed.data.pretrain, streaming=False))
    assert replace(streamed, pretrain=stage, data=listed).pretrain.micro_tokens == 160


def test_settings_that_do_not_go_with_streams_are_refused(streamed):
    source = DataSource("a.tar", streaming=True)
    with pytest.raises(ConfigError, match="cannot be a stream"):
        replace(streamed, data=replace(streamed.data, pretrain_eval=source))
    with pytest.raises(ConfigError, match="no limit"):
        DataSource("a.tar", streaming=True, limit=3)
    with pytest.raises(ConfigError, match="in place of path"):
        DataSource("a.tar", streaming=True, mixture=[MixturePart("b.tar")])
    mixed = DataSource(streaming=True, mixture=[MixturePart("b.tar")])
    data = replace(streamed.data, pretrain=mixed)
    with pytest.raises(ConfigError, match="not made from a mixture"):
        replace(streamed, data=data)
    with pytest.raises(ConfigError, match="above 0"):
        MixturePart("a", weight=0)


def test_a_recipe_file_has_lists_and_mixtures(tmp_path):
    from tinyalign.training.recipe.files import load_recipe, save_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data:\n  pretrain:\n    streaming: true\n    mixture:\n"
        "      - {path: [a.tar, b.tar], weight: 2}\n      - {path: 'https://h/{0..3}.parquet'}\n"
        "  finetune: {path: [c.json]}\npretrain: {max_steps: 5}\nmemory: {k: 0}\n"
    )
    recipe = load_recipe(path)
    assert recipe.data.pretrain.mixture == [
        MixturePart(["a.tar", "b.tar"], 2),
        MixturePart("https://h/{0..3}.parquet"),
    ]
    save_recipe(recipe, path)
    assert load_recipe(path) == recipe


def test_random_access_and_stream_name_samples_alike(shards):
    assert {one.id for one in open_dataset(shards)} == {
        one.id for one in open_stream(shards, epochs=1)
    }
