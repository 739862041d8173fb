"""Aligned keys: a query lands where its image's text would be, and never thanks to its own text."""

import pytest
import torch

from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.keys.aligned import (
    AlignedKeyFunction,
    _cross_fitted,
    fit_aligned,
    fold_of,
)
from tinyalign.memory.perceiver import load_key_function

N_TOPICS, PER_TOPIC, WIDTH, VOCAB = 6, 20, 12, 40


@pytest.fixture(scope="module")
def corpus():
    """Images of six topics; each text holds its topic's two words and one word of its own."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.arange(N_TOPICS).repeat(PER_TOPIC)
    centres = torch.randn(N_TOPICS, WIDTH, generator=generator)
    pooled = centres[topics] + 0.1 * torch.randn(len(topics), WIDTH, generator=generator)
    noise = torch.randint(20, VOCAB, (len(topics),), generator=generator)
    ids = torch.stack([1 + 2 * topics, 2 + 2 * topics, noise], dim=1)
    hashes = [f"{i:016x}" for i in range(len(topics))]
    return topics, pooled, ids, hashes


@pytest.fixture(scope="module")
def keys(corpus):
    _, pooled, ids, hashes = corpus
    return fit_aligned(pooled, ids, torch.zeros_like(ids), hashes, VOCAB, dim=16)


def test_queries_find_entries_that_say_what_the_image_shows(corpus, keys):
    topics, pooled, ids, _ = corpus
    queries, entries = keys.keys(pooled[:, None, :]), keys.entry_keys(None, ids, ids)
    nearest = (queries @ entries.T).topk(5).indices
    assert (topics[nearest] == topics[:, None]).float().mean() > 0.9


def test_keys_and_queries_have_unit_length(corpus, keys):
    _, pooled, ids, _ = corpus
    for made in (keys.keys(pooled[:, None]), keys.entry_keys(None, ids, ids)):
        assert made.dtype == torch.float32
        torch.testing.assert_close(made.norm(dim=1), torch.ones(len(pooled)))


def test_own_text_has_no_part_in_a_training_query():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, 30, 4, generator=generator)
    folds = torch.arange(30) % 3
    maps = _cross_fitted(inputs, targets, folds, n_folds=3, ridge=1.0, image_width=2)
    targets[7] += 10.0  # another text for a sample of fold 1
    changed = _cross_fitted(inputs, targets, folds, n_folds=3, ridge=1.0, image_width=2)
    torch.testing.assert_close(changed[1], maps[1], rtol=1e-5, atol=1e-6)
    for other in (0, 2, 3):
        assert not torch.allclose(changed[other], maps[other], atol=1e-2)


def test_a_fold_uses_its_own_map(corpus, keys):
    _, pooled, _, hashes = corpus
    features = pooled[:8, None]
    folds = [fold_of(name) for name in hashes[:8]]
    queries = keys.keys(features, folds=folds)
    for row, fold in enumerate(folds):
        alone = keys.keys(features[row : row + 1], folds=[fold])[0]
        torch.testing.assert_close(queries[row], alone)
    assert not torch.allclose(queries, keys.keys(features))


def test_queries_ignore_padding_and_batch_mates(corpus, keys):
    _, pooled, ids, _ = corpus
    padded = torch.nn.functional.pad(ids, (0, 7))
    alone = torch.cat([keys.keys(pooled[i : i + 1, None], ids[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(keys.keys(pooled[:6, None], padded[:6]), alone)


def test_a_text_alone_is_searched_in_the_same_space(corpus, keys):
    _, _, ids, _ = corpus
    torch.testing.assert_close(keys.keys(None, ids), keys.entry_keys(None, ids, ids))


def test_saved_and_loaded_it_is_the_same(keys, tmp_path):
    keys.save(tmp_path)
    again = load_key_function(tmp_path)
    assert isinstance(again, AlignedKeyFunction)
    assert again.hash == keys.hash


def test_a_damaged_file_is_named(keys, tmp_path):
    keys.save(tmp_path)
    path = tmp_path / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BankError, match=r"key\.safetensors"):
        load_key_function(tmp_path)


def test_features_of_another_width_are_refused(keys):
    with pytest.raises(ConfigError, match=str(WIDTH)):
        keys.keys(torch.zeros(2, 3, WIDTH + 1))
