"""The Perceiver's training: targets, what is learned, what is reported, what is a control."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import Message, Sample
from tinyalign.errors import ConfigError
from tinyalign.memory.perceiver import Perceiver, text_spans
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.features import FeatureCache
from tinyalign.training.perceiver.text_loss import (
    TextScore,
    silence_loss,
    text_loss,
    text_targets,
)
from tinyalign.training.perceiver.train import (
    REPORT,
    FeatureStatistics,
    _Training,
    split_by_image,
    train_perceiver,
)
from tinyalign.training.recipe.memory import PerceiverTraining

QUICK = PerceiverTraining(min_steps=1, max_steps=3, batch_size=8, vocab_size=300, held_out=0.25)


@pytest.fixture(scope="module")
def corpus(pairs: Path, tiny_vision_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    samples = list(open_dataset(pairs))
    encoder = VisionEncoder.load(tiny_vision_dir)
    return samples, FeatureCache(tmp_path_factory.mktemp("f"), encoder).cover(samples)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), n=st.integers(1, 24))
@settings(max_examples=50, deadline=None)
def test_every_token_has_the_latent_of_its_span(lengths: list[int], n: int) -> None:
    width = max(1, *lengths) if lengths else 1
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for b, length in enumerate(lengths):
        ids[b, :length] = torch.arange(1, length + 1)
    targets = text_targets(ids, n)
    assert len(targets.token) == sum(lengths)
    for b, length in enumerate(lengths):
        mine = targets.sample == b
        for token, latent in zip(targets.token[mine].tolist(), targets.latent[mine].tolist()):
            assert token - 1 in text_spans(length, n)[latent]
        assert bool(targets.fits[mine].all()) == (length <= n or length == 0)


def test_the_loss_of_texts_that_fit_is_plain_cross_entropy() -> None:
    logits = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 5, 7, 0], [2, 0, 0, 0]])
    picked = torch.stack([logits[0, 0], logits[0, 1], logits[0, 2], logits[1, 0]])
    wanted = torch.nn.functional.cross_entropy(picked, torch.tensor([3, 5, 7, 2]))
    torch.testing.assert_close(text_loss(logits, text_targets(ids, 4)), wanted)


def test_the_loss_of_a_long_text_is_least_at_the_even_bag() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    targets = text_targets(ids, 2)  # latent 0 stands for {1, 2}, latent 1 for {3, 4}
    bag = torch.full((1, 2, 6), -30.0)
    bag[0, 0, [1, 2]] = 0.0
    bag[0, 1, [3, 4]] = 0.0
    entropy = torch.log(torch.tensor(2.0))
    torch.testing.assert_close(text_loss(bag, targets), entropy)
    assert text_loss(torch.zeros(1, 2, 6), targets) > entropy


def test_latents_beyond_the_end_are_to_say_padding() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])  # one text has no latent left, one has two
    wanted = torch.nn.functional.cross_entropy(logits[1, 1:], torch.tensor([0, 0]))
    torch.testing.assert_close(silence_loss(logits, mask), wanted)
    assert silence_loss(logits[:1], mask[:1]) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_texts_becomes_random_words_of_the_same_number(
    corpus, learned, share: float
) -> None:
    samples, features = corpus
    standard = FeatureStatistics(*torch.ones(4, 1))
    args = PerceiverTraining(random_texts=share)
    training = _Training(learned, samples, features, standard, args, torch.device("cpu"))
    plain, mask = learned.encode_text([sample.text for sample in samples])
    drawn, same_mask = training.texts(range(len(samples)))
    assert torch.equal(mask, same_mask)
    assert torch.equal(drawn == 0, plain == 0)
    changed = (drawn != plain).any(dim=1).float().mean()
    assert share - 0.3 < changed < share + 0.3
    assert bool(changed > 0) == bool(share > 0)


def test_recall_of_long_texts_is_counted_apart() -> None:
    logits = torch.zeros(2, 2, 6)
    logits[0, 0, [1, 2]] = 1.0  # span {1, 2}: both found
    logits[0, 1, [3, 5]] = 1.0  # span {3, 4}: one found
    logits[1, 0, 5] = 1.0  # the short text's one token: right
    score = TextScore()
    score.add(logits, text_targets(torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0]]), 2))
    assert (score.token_accuracy, score.long_text_recall) == (1.0, 0.75)
    assert TextScore().token_accuracy is None


@pytest.fixture(scope="module")
def learned(corpus, tmp_path_factory) -> Perceiver:
    """Forty passes over 18 pairs."""
    samples, features = corpus
    args = PerceiverTraining(min_steps=40, batch_size=18, vocab_size=300, held_out=0.25)
    torch.set_num_threads(1)
    return train_perceiver(samples, features, tmp_path_factory.mktemp("learned"), args)


def test_a_corpus_is_learned_by_heart(corpus, learned) -> None:
    samples, features = corpus
    score = TextScore()
    for i in range(24):
        latents = learned.values(features.batch([i]), [samples[i].text])
        ids, _ = learned.encode_text([samples[i].text])
        score.add(learned.network.text_logits(latents), text_targets(ids, 24))
    recalled = [value for value in (score.token_accuracy, score.long_text_recall) if value]
    assert min(recalled) > 0.3  # chance is below 0.01


def test_the_image_read_out_gives_plain_pooled_features(corpus, learned) -> None:
    samples, features = corpus
    rows = list(range(24))
    latents = learned.values(features.batch(rows), [samples[i].text for i in rows])
    pooled = features.batch(rows).mean(dim=1)
    error = (learned.network.image_readout(latents) - pooled).square().mean()
    assert error < pooled.square().mean()  # the scale is that of the features


def test_the_report_says_what_was_measured_on_held_out_images(corpus, tmp_path) -> None:
    samples, features = corpus
    words = " ".join(f"word{i}" for i in range(40))
    turns = (Message("user", ""), Message("assistant", words))
    long = [Sample(f"long-{i}", s.images, turns) for i, s in enumerate(samples)]
    args = replace(QUICK, vocab_size=700)
    train_perceiver([*samples, *long], features_twice(features), tmp_path, args)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["pairs"] + report["held_out_pairs"] == 48
    assert report["held_out_pairs"] == 12
    assert report["long_texts"] == 0.5
    assert 0 <= report["token_accuracy"] <= 1
    assert 0 <= report["long_text_recall"] <= 1
    assert report["image_r2"] < 1
    assert report["steps"] == 3


def features_twice(features):
    doubled = type(features)(features.source, features.rows * 2, [])
    return doubled


def test_all_texts_of_an_image_fall_on_one_side(corpus) -> None:
    _, features = corpus
    doubled = features_twice(features)
    train, held_out = split_by_image(doubled, doubled.usable(), QUICK)
    hashes = doubled.image_hashes()
    assert {hashes[i] for i in train}.isdisjoint(hashes[i] for i in held_out)
    assert len(train) + len(held_out) == 48


def test_same_seed_same_perceiver_and_it_loads_as_it_was(corpus, tmp_path) -> None:
    samples, features = corpus
    one = train_perceiver(samples, features, tmp_path / "a", QUICK, seed=3)
    two = train_perceiver(samples, features, tmp_path / "b", QUICK, seed=3)
    assert one.hash == two.hash == Perceiver.load(tmp_path / "a").hash


def test_the_untrained_control_has_the_same_keys_and_other_values(corpus, tmp_path) -> None:
    samples, features = corpus
    trained = train_perceiver(samples, features, tmp_path / "a", QUICK)
    control = train_perceiver(samples, features, tmp_path / "b", QUICK, trained=False)
    assert control.key_function.hash == trained.key_function.hash
    assert control.tokenizer.to_str() == trained.tokenizer.to_str()
    assert control.hash != trained.hash


def test_pixels_mode(corpus, tmp_path) -> None:
    samples, features = corpus
    args = PerceiverTraining(
        min_steps=1, max_steps=1, batch_size=2, vocab_size=300, held_out=0.05, input_mode="pixels"
    )
    perceiver = train_perceiver(samples[:4], features_of(features, 4), tmp_path, args)
    assert perceiver.network.config.input_mode == "pixels"


def features_of(features, n: int):
    return type(features)(features.source, features.rows[:n], [])


def test_one_image_is_not_enough(corpus, tmp_path) -> None:
    samples, features = corpus
    with pytest.raises(ConfigError, match="at least 2"):
        train_perceiver(samples[:1], features_of(features, 1), tmp_path, QUICK)
