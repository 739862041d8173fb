"""Joint keys: texts, images and questions, each compared with its like."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.keys.fitting import fit_joint
from tinyalign.memory.keys.joint import JointKeyFunction
from tinyalign.memory.keys.protocol import KeyCorpus
from tinyalign.memory.keys.registry import load_key_function
from tinyalign.memory.keys.text import encode_text, train_tokenizer

TOPICS = ["dog grass", "child pool", "man rock", "bicycle street"]
QUESTIONS = ["what animal is it?", "how many are there?"]
EACH, PATCHES, WIDTH = 20, 4, 12


def made(questions: bool) -> tuple[KeyCorpus, torch.Tensor, Tokenizer]:
    """Images of four topics, whose texts say so; two questions take turns."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.arange(len(TOPICS)).repeat(EACH)
    centres = torch.randn(len(TOPICS), 1, WIDTH, generator=generator)
    noise = torch.randn(len(topics), PATCHES, WIDTH, generator=generator)
    features = centres[topics] + 0.3 * noise
    asked = [QUESTIONS[i % 2] if questions else "" for i in range(len(topics))]
    texts = [f"{asked[i]} {TOPICS[topic]} {i}".strip() for i, topic in enumerate(topics.tolist())]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    hashes = [f"{i:016x}" for i in range(len(topics))]
    corpus = KeyCorpus(
        features=lambda rows: features[list(rows)], instructions=asked, texts=texts,
        image_hashes=hashes, tokenizer=tokenizer, kind="joint", alpha=0.3,
    )  # fmt: skip
    return corpus, features, tokenizer


@pytest.fixture(scope="module")
def captions():
    corpus, features, tokenizer = made(questions=False)
    return fit_joint(corpus), corpus, features, tokenizer


@pytest.fixture(scope="module")
def answers():
    corpus, features, tokenizer = made(questions=True)
    return fit_joint(corpus), corpus, features, tokenizer


def ids(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    return encode_text(tokenizer, texts, 64)[0]


def entry_keys(world) -> torch.Tensor:
    keys, corpus, features, tokenizer = world
    return keys.entry_keys(
        features, ids(tokenizer, list(corpus.instructions)), ids(tokenizer, list(corpus.texts))
    )


def test_queries_find_entries_of_their_topic(captions) -> None:
    keys, _, features, _ = captions
    nearest = (keys.keys(features) @ entry_keys(captions).T).topk(5).indices
    assert (nearest % len(TOPICS) == torch.arange(len(features))[:, None] % len(TOPICS)).all()


def test_a_similarity_is_the_shares_of_its_parts(answers) -> None:
    keys, corpus, features, tokenizer = answers
    asked = ids(tokenizer, list(corpus.instructions))
    queries, entries = keys.keys(features, asked), entry_keys(answers)
    d = keys.aligned.dim
    cosines = []
    for part in (slice(0, d), slice(d, keys.directions.shape[1] + d), slice(-d, None)):
        a, b = queries[:, part], entries[:, part]
        cosines.append((a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None]))
    said, seen, question = cosines
    torch.testing.assert_close(
        queries @ entries.T, 0.35 * said + 0.3 * seen + 0.35 * question, atol=1e-5, rtol=1e-4
    )


def test_a_question_finds_entries_that_were_asked_the_same(answers) -> None:
    keys, _, features, tokenizer = answers
    asked = ids(tokenizer, [QUESTIONS[0]] * len(features))
    nearest = (keys.keys(features, asked) @ entry_keys(answers).T).topk(3).indices
    assert (nearest % 2 == 0).float().mean() > 0.95


def test_a_corpus_without_questions_spends_nothing_on_them(captions, answers) -> None:
    assert not captions[0].asks
    assert answers[0].asks
    assert captions[0].dim == captions[0].aligned.dim + captions[0].directions.shape[1]
    assert entry_keys(answers).shape[1] == answers[0].dim


@pytest.mark.parametrize("world", ["captions", "answers"])
def test_keys_have_unit_length_whatever_is_missing(world, request) -> None:
    keys, _, features, tokenizer = request.getfixturevalue(world)
    text = ids(tokenizer, ["dog grass"])
    for found in (
        keys.keys(features), keys.keys(None, text), keys.entry_keys(None, text[:, :0], text),
    ):  # fmt: skip
        assert found.dtype == torch.float32
        assert found.shape[1] == keys.dim
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_a_training_query_leaves_out_its_own_fold(captions) -> None:
    keys, _, features, _ = captions
    assert keys.n_folds > 1
    assert not torch.allclose(keys.keys(features[:1], folds=[0]), keys.keys(features[:1]))


def test_queries_ignore_padding_and_batch_mates(answers) -> None:
    keys, corpus, features, tokenizer = answers
    asked = ids(tokenizer, list(corpus.instructions[:4]))
    padded = torch.nn.functional.pad(asked, (0, 7))
    alone = torch.cat([keys.keys(features[i : i + 1], asked[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(keys.keys(features[:4], padded), alone)


def test_the_largest_values_of_patches_have_a_say(captions) -> None:
    keys, _, features, _ = captions
    other = features[:1].clone()
    other[0, 0, 0] += 3.0
    other[0, 1, 0] -= 3.0  # the mean stays
    assert not torch.allclose(keys.keys(other), keys.keys(features[:1]), atol=1e-4)


def test_what_is_saved_is_what_is_loaded(answers, tmp_path) -> None:
    keys, _, features, tokenizer = answers
    keys.save(tmp_path)
    again = load_key_function(tmp_path)
    assert isinstance(again, JointKeyFunction)
    assert again.hash == keys.hash
    asked = ids(tokenizer, [QUESTIONS[1]])
    assert torch.equal(again.keys(features[:1], asked), keys.keys(features[:1], asked))


def test_damage_is_named(captions, tmp_path) -> None:
    captions[0].save(tmp_path)
    weights = tmp_path / "key.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x40
    weights.write_bytes(bytes(data))
    with pytest.raises(BankError, match=r"key\.safetensors: content does not match"):
        load_key_function(tmp_path)
    weights.write_bytes(b"nothing")
    with pytest.raises(BankError, match="not a readable key function"):
        load_key_function(tmp_path)


def test_features_of_another_encoder_are_refused(captions) -> None:
    keys = captions[0]
    with pytest.raises(ConfigError, match=f"must be \\(B, n, {WIDTH}\\)"):
        keys.keys(torch.zeros(1, 3, WIDTH + 1))
    with pytest.raises(ConfigError, match="do not fit pooled images"):
        JointKeyFunction(keys.aligned, keys.scales, torch.zeros(WIDTH + 1, 2), 0.3)


def test_no_pairs_no_keys() -> None:
    corpus, _, _ = made(questions=False)
    empty = KeyCorpus(corpus.features, [], [], [], corpus.tokenizer, "joint", 0.3)
    with pytest.raises(ConfigError, match="the corpus is empty"):
        fit_joint(empty)
