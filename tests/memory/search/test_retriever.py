from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from tinyalign.data.images import image_hash, load_image
from tinyalign.data.sample import Message
from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.keys.image_text import ImageTextKeyFunction
from tinyalign.memory.perceiver import Perceiver
from tinyalign.memory.search.retriever import Exclusion, Retriever
from tinyalign.model.protocols import MemoryRetriever


@pytest.fixture(scope="module")
def features(samples, vision) -> torch.Tensor:
    return vision.encode([load_image(sample.images[0]) for sample in samples])


@pytest.fixture(scope="module")
def ids(samples, perceiver) -> torch.Tensor:
    return perceiver.query_ids([sample.instruction for sample in samples])


def test_it_is_what_the_model_expects(bank, perceiver) -> None:
    assert isinstance(Retriever(bank, perceiver, 5), MemoryRetriever)


@pytest.mark.parametrize("k", [0, 1, 5, 10, 20])
def test_any_k_even_more_than_the_bank_has(k, bank, perceiver, features, ids) -> None:
    found = Retriever(bank, perceiver, k).retrieve(features, ids)
    assert found.values.shape == (12, k, 8, 8)
    assert found.mask.shape == found.scores.shape == (12, k)
    assert found.mask.sum(dim=1).tolist() == [min(k, 12)] * 12
    assert [len(names) for names in found.ids] == [min(k, 12)] * 12
    assert not found.values[~found.mask].any()
    assert not found.scores[~found.mask].any()


def test_the_values_are_those_of_the_ids(bank, perceiver, features, ids) -> None:
    found = Retriever(bank, perceiver, 3).retrieve(features, ids)
    for b in range(12):
        rows = torch.tensor([bank.ids.index(name) for name in found.ids[b]])
        assert torch.equal(found.values[b], bank.gather(rows))
        assert (found.scores[b].diff() <= 0).all()
    assert [names[0] for names in found.ids[:9]] == bank.ids[:9]  # itself, where not excluded
    torch.testing.assert_close(found.scores[:, 0], torch.ones(12), atol=1e-3, rtol=0)  # fp16 keys


def test_spare_slots_are_masked_zeros(bank, perceiver, features) -> None:
    found = Retriever(bank, perceiver, 2, slots=5).retrieve(features)
    assert found.values.shape == (12, 5, 8, 8)
    assert found.mask.tolist() == [[True, True, False, False, False]] * 12
    assert not found.values[:, 2:].any()


def test_own_id_and_own_image_are_excluded(samples, bank, perceiver, features, ids) -> None:
    hashes = [image_hash(sample.images[0]) for sample in samples]
    retriever = Retriever(bank, perceiver, 12)
    by_id = retriever.retrieve(features, ids, [Exclusion(ids=(s.id,)) for s in samples])
    by_image = retriever.retrieve(features, ids, [Exclusion(image_hashes=(h,)) for h in hashes])
    for b, sample in enumerate(samples):
        assert set(by_id.ids[b]) == set(bank.ids) - {sample.id}
        assert set(by_image.ids[b]) == {s.id for s, h in zip(samples, hashes) if h != hashes[b]}


def test_answers_never_reach_the_query(samples, bank, perceiver, features) -> None:
    """Whatever an assistant turn says, earlier or later, the query stays the same."""
    found = []
    for answer in ("It is red", "utterly different words"):
        changed = [
            replace(s, messages=(s.messages[0], Message("assistant", answer), *s.messages))
            for s in samples
        ]
        ids = perceiver.query_ids([sample.instruction for sample in changed])
        found.append(Retriever(bank, perceiver, 5).retrieve(features, ids))
    assert found[0].ids == found[1].ids
    assert torch.equal(found[0].scores, found[1].scores)


def test_padding_and_batch_do_not_change_what_is_found(bank, perceiver, features, ids) -> None:
    retriever = Retriever(bank, perceiver, 4)
    together = retriever.retrieve(features, torch.nn.functional.pad(ids, (0, 7)))
    for b in range(12):
        alone = retriever.retrieve(features[b : b + 1], ids[b : b + 1])
        torch.testing.assert_close(alone.scores[0], together.scores[b], atol=1e-6, rtol=0)


def test_people_search_by_image_text_or_both(samples, bank, perceiver, vision, features) -> None:
    retriever = Retriever.open(bank, 3)
    image = load_image(samples[4].images[0])
    by_image = retriever.search(image, vision=vision)
    assert by_image[0].entry.id == "s4"
    assert [hit.row for hit in by_image] == [
        hit.row for hit in retriever.search(features=features[4])
    ]
    by_text = retriever.search(text=samples[1].instruction, k=4)
    assert {hit.entry.instruction for hit in by_text} == {samples[1].instruction}
    both = retriever.search(image, samples[4].instruction, vision=vision)
    assert both[0].entry.id == "s4"
    assert both[0].score == pytest.approx(1.0, abs=1e-5)
    without = retriever.search(image, vision=vision, exclude=Exclusion(ids=("s4",)))
    assert "s4" not in [hit.entry.id for hit in without]


def test_searching_by_image_without_an_encoder_says_what_is_missing(bank, samples) -> None:
    with pytest.raises(ConfigError, match="vision encoder"):
        Retriever.open(bank, 1).search(load_image(samples[0].images[0]))


def test_another_key_function_is_refused(bank, perceiver) -> None:
    old = perceiver.key_function
    other = ImageTextKeyFunction("pooled", 0.5, old.image_mean, old.text_table, old.text_mean)
    with pytest.raises(BankError, match="another key function"):
        Retriever(bank, Perceiver(perceiver.network, perceiver.tokenizer, other), 1)


def test_a_replaced_perceiver_in_the_bank_is_noticed(bank, perceiver, tmp_path) -> None:
    copy = shutil.copytree(bank.folder, tmp_path / "copy")
    path = copy / "compressor" / "config.json"
    path.write_text(
        path.read_text().replace('"num_self_attention_heads": 2', '"num_self_attention_heads": 4')
    )
    with pytest.raises(BankError, match="it was replaced"):
        Retriever.open(MemoryBank.open(copy), 1)


@pytest.mark.parametrize(("k", "slots"), [(-1, None), (3, 2)])
def test_impossible_sizes_are_refused(k, slots, bank, perceiver) -> None:
    with pytest.raises(ConfigError, match="k "):
        Retriever(bank, perceiver, k, slots=slots)
