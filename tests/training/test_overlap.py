"""What a run says of its held-out data: exact overlap of all, self-hits and near keys of some."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import Message, Sample
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.builder import build_bank
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training import overlap
from tinyalign.training.caches.features import FeatureCache
from tinyalign.training.overlap import say_overlap
from tinyalign.training.perceiver.train import train_perceiver
from tinyalign.training.recipe.memory import PerceiverTraining


@pytest.fixture(scope="module")
def source(tiny_vision_dir: Path, tmp_path_factory) -> FeatureCache:
    encoder = VisionEncoder.load(tiny_vision_dir)
    return FeatureCache(tmp_path_factory.mktemp("cache"), encoder, "float32")


@pytest.fixture(scope="module")
def samples(pairs: Path) -> list[Sample]:
    return list(open_dataset(pairs))


@pytest.fixture(scope="module")
def bank(samples, source, tmp_path_factory) -> MemoryBank:
    """A bank of the first twelve samples."""
    folder = tmp_path_factory.mktemp("bank")
    few = PerceiverTraining(min_steps=1, max_steps=1, batch_size=8, vocab_size=300, held_out=0.2)
    features = source.cover(samples[:12])
    perceiver = train_perceiver(samples[:12], features, folder / "c", few, alpha=1.0)
    return build_bank(samples[:12], source.encoder, perceiver, folder / "b").bank


@pytest.fixture
def said(bank, source, caplog):
    """`said(samples)`: the lines of the log."""

    def call(held_out: list[Sample]) -> list[str]:
        features = source.cover(held_out)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="tinyalign"):
            say_overlap(bank, held_out, features, k=2, seed=7)
        return [r.getMessage() for r in caplog.records if "held-out" in r.getMessage()]

    return call


def test_self_hits_and_near_keys_are_in_the_line(said, samples) -> None:
    (line,) = said([samples[3], samples[15]])
    assert line.startswith(
        "held-out data in the bank: 2 samples, 12 entries: 1 with an image in the bank, "
        "1 with an id in it, 1 would find their own entry first, 1 among the 2 best, "
    )
    assert "near another entry (keys >= 0.98 similar)" in line


def test_an_id_of_another_source_is_chance(said, samples) -> None:
    (line,) = said([replace(samples[15], id=samples[3].id, source="elsewhere.json")])
    assert "0 with an image in the bank, 0 with an id in it" in line


def test_of_many_samples_a_draw_is_searched_and_all_are_compared(
    said, samples, monkeypatch
) -> None:
    monkeypatch.setattr(overlap, "SEARCHED", 4)
    both, drawn = said(samples)
    assert both.startswith(
        "held-out data in the bank: 24 samples, 12 entries: 12 with an image in the bank, "
    )
    assert "find" not in both
    assert drawn.startswith("held-out data in the bank, 4 of 24 drawn with seed 7: 4 samples, ")
    assert said(samples) == [both, drawn]


def test_samples_without_an_image_are_compared_by_id_alone(said, samples) -> None:
    text = Sample(samples[3].id, (), (Message("user", "hi"),), source=samples[3].source)
    (alone,) = said([text])
    assert alone.endswith("1 samples, 12 entries: 0 with an image in the bank, 1 with an id in it")
    both, searched = said([text, samples[4]])
    assert "2 samples" in both
    assert searched.startswith("held-out data in the bank, the 1 with an image: 1 samples")
