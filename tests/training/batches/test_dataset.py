"""Items: what the model is fed, and what happens to samples that cannot be."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyalign.data.chat import choose_template
from tinyalign.data.collator import Collator
from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import Message, Sample
from tinyalign.errors import DataError
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.batches.dataset import TrainingDataset
from tinyalign.training.caches.features import FeatureCache
from tinyalign.training.recipe.memory import BankArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun


@pytest.fixture
def shop(recipe: Recipe) -> StageRun:
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    return StageRun(recipe, folder, "pretrain")


def test_an_item_is_ids_labels_features_and_values_from_the_bank(shop: StageRun) -> None:
    dataset = shop.dataset(shop.recipe.data.pretrain)
    item = dataset[4]
    config = shop.model.config
    ids = torch.tensor(item["input_ids"])
    assert int((ids == config.image_token_id).sum()) == config.image_seq_length == 16
    assert int((ids == config.memory_token_id).sum()) == config.n_memory_tokens == 32
    supervised = [v for v in item["labels"] if v != -100]
    text = shop.processor.tokenizer.decode(supervised)
    assert text.startswith("A red ball number 4 in the park.")
    encoder = VisionEncoder.from_model(shop.model, shop.processor)
    live = encoder.encode_pixels(torch.stack(shop_pixels(shop, 4)))
    torch.testing.assert_close(torch.stack(item["vision_features"]), live)
    rows = dataset.neighbours.table.indices[4, :2]
    assert torch.equal(item["memory_values"], shop.bank.gather(rows))
    assert item["memory_values"].shape == (2, 32, 96)
    assert item["memory_mask"].tolist() == [True, True]


def shop_pixels(shop: StageRun, index: int) -> list[torch.Tensor]:
    live = replace(shop.recipe, data=replace(shop.recipe.data, cache="none"))
    other = StageRun(live, shop.folder, "pretrain")
    return other.dataset(live.data.pretrain)[index]["pixel_values"]


def test_a_bank_smaller_than_k_leaves_masked_slots(recipe: Recipe, tmp_path: Path) -> None:
    few = replace(recipe.memory, k=5, bank=BankArgs(entries=3))
    recipe = replace(recipe, memory=few, output=str(tmp_path / "few"))
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    item = StageRun(recipe, folder, "pretrain").dataset(recipe.data.pretrain)[0]
    assert item["memory_values"].shape == (5, 32, 96)
    present = item["memory_mask"]
    assert 2 <= int(present.sum()) <= 3
    assert not item["memory_values"][~present].any()


def test_text_only_samples_get_neither_placeholders_nor_memory(shop: StageRun) -> None:
    plain = shop.dataset(shop.recipe.data.pretrain)
    turns = (Message("user", "Who?"), Message("assistant", "Nobody."))
    template = choose_template(shop.processor.tokenizer, "chatml")
    samples = [Sample("text", (), turns)]
    table = plain.neighbours.table
    one = replace(table, indices=table.indices[:1], scores=table.scores[:1], excluded=[[]])
    dataset = TrainingDataset(
        samples,
        shop.processor,
        n_memory_tokens=shop.model.config.n_memory_tokens,
        template=template,
        neighbours=replace(plain.neighbours, table=one),
    )
    item = dataset[0]
    assert "vision_features" not in item
    assert shop.model.config.memory_token_id not in item["input_ids"]
    assert not item["memory_mask"].any()


def test_a_batch_may_mix_images_and_text_alone(shop: StageRun) -> None:
    dataset = shop.dataset(shop.recipe.data.pretrain)
    text = dataset[1]
    del text["vision_features"]
    config = shop.model.config
    placeholders = (config.image_token_id, config.memory_token_id)
    kept = [i for i, token in enumerate(text["input_ids"]) if token not in placeholders]
    text |= {name: [text[name][i] for i in kept] for name in ("input_ids", "labels")}
    text["memory_mask"] = torch.zeros_like(text["memory_mask"])
    model = shop.model.train()
    for items in ([dataset[0], text], [text]):
        batch = Collator(0)(items)
        inputs = {name: batch[name] for name in batch if name not in ("index", "n_supervised")}
        model.zero_grad()
        model(**inputs).loss.backward()
        parts = (model.model.multi_modal_projector, model.model.memory_connector)
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None for p in trained)  # the same graph, whatever the batch


def test_an_unusable_sample_gives_way_to_the_next_and_is_told_once(shop, caplog) -> None:
    samples = list(open_dataset(shop.recipe.data.pretrain.path))
    samples[2] = replace(samples[2], messages=(Message("user", "alone"),))
    features = FeatureCache(shop.folder.path, shop.features.encoder, "float32").cover(samples)
    dataset = TrainingDataset(samples, shop.processor, features=features)
    with caplog.at_level(logging.WARNING, "tinyalign"):
        for _ in range(3):
            assert dataset[2]["index"] == 3
    assert list(dataset.skipped) == ["pair-2"]
    assert caplog.text.count("pair-2") == 1
    strict = TrainingDataset(samples, shop.processor, features=features, strict=True)
    with pytest.raises(DataError, match="pair-2"):
        strict[2]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_blank_answers_alone_are_nothing_to_learn_from(shop: StageRun, answer: str) -> None:
    samples = list(open_dataset(shop.recipe.data.pretrain.path, limit=3))
    turns = (Message("user", "Who?"), Message("assistant", answer))
    samples[1] = replace(samples[1], messages=turns)
    dataset = TrainingDataset(samples, shop.processor)
    assert dataset[1]["index"] == 2
    assert "expected an answer" in dataset.left_out()["pair-1"]
    one_answer = (*turns, Message("user", "And?"), Message("assistant", "A dog."))
    samples[1] = replace(samples[1], messages=one_answer)
    assert TrainingDataset(samples, shop.processor)[1]["index"] == 1


def test_placeholders_beyond_max_length_are_an_error_in_words(shop: StageRun) -> None:
    samples = open_dataset(shop.recipe.data.pretrain.path, limit=2)
    dataset = TrainingDataset(samples, shop.processor, max_length=5)
    with pytest.raises(DataError, match=r"none of 2 samples.*max_length"):
        dataset[0]


def test_rows_must_belong_to_the_samples(shop: StageRun) -> None:
    dataset = shop.dataset(shop.recipe.data.pretrain)
    with pytest.raises(DataError, match="24 rows of features for 3 samples"):
        TrainingDataset(dataset.samples[:3], shop.processor, features=dataset.features)
    with pytest.raises(DataError, match="24 rows of neighbours"):
        TrainingDataset(dataset.samples[:3], shop.processor, neighbours=dataset.neighbours)


def test_random_captions_follow_the_runs_seed_and_the_banks_do_not(tmp_path, recipe) -> None:
    table = tmp_path / "captions.csv"
    folder = Path(recipe.data.pretrain.path).parent
    rows = [f"{folder}/{i}.png,caption {c} of {i}" for i in range(8) for c in range(5)]
    table.write_text("image,caption\n" + "\n".join(rows))
    source = replace(recipe.data.pretrain, path=str(table), captions="random")
    answers, banks = [], []
    for seed in (1, 2):
        data = replace(recipe.data, pretrain=source, pretrain_eval=None)
        changed = replace(recipe, data=data, seed=seed, output=str(tmp_path / f"run{seed}"))
        run = RunFolder(changed)
        run.path.mkdir(parents=True)
        shop = StageRun(changed, run, "pretrain")
        answers.append([sample.answer for sample in shop.dataset(source).samples])
        banks.append(shop.bank.hash)
    assert answers[0] != answers[1]
    assert banks[0] == banks[1]


def test_lengths_are_those_of_the_items(shop: StageRun) -> None:
    dataset = shop.dataset(shop.recipe.data.pretrain)
    found = dataset.lengths.tolist()
    assert found == [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
    assert len(set(found)) > 1


def test_an_unusable_sample_has_the_length_of_the_one_that_replaces_it(shop: StageRun) -> None:
    samples = [
        Sample(f"s{i}", (), (Message("user", "Who?"), Message("assistant", answer)))
        for i, answer in enumerate(["", "Nobody in particular.", "I.", ""])
    ]
    template = choose_template(shop.processor.tokenizer, "chatml")
    dataset = TrainingDataset(samples, shop.processor, template=template, max_length=20)
    lengths = dataset.lengths.tolist()
    assert lengths == [len(dataset[i]["input_ids"]) for i in range(4)]
