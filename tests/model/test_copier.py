"""Neighbours' texts as tokens of the model, and generation that copies from them."""

from __future__ import annotations

import pytest
import torch

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.copier import MOST_TOKENS, Copier
from tinyalign.model.copying import CopyGate
from tinyalign.model.protocols import MemoryBatch, Neighbourhood

TEXT = "a brown dog"


@pytest.fixture
def attached(build, fake_retriever):
    """A tiny model whose retriever finds the same text for every query."""
    model, processor = build(k=2)
    processor.memory_enabled = True
    processor.query_tokenizer = lambda texts: torch.tensor([[len(text)] for text in texts])

    class Telling(fake_retriever):
        def retrieve(self, vision_features, query_ids=None, exclude=None) -> MemoryBatch:
            found = super().retrieve(vision_features, query_ids, exclude)
            near = Neighbourhood([0, 1], [TEXT, "a cat"], [0.9, 0.1])
            return MemoryBatch(
                found.values, found.mask, found.scores, found.ids, [near] * len(found.ids)
            )

    model.retriever = Telling(2)
    return model, processor


def answer(model, processor, batch, **options) -> list[str]:
    output = model.generate(**batch, max_new_tokens=12, **options)
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def test_texts_are_written_as_training_writes_answers(attached) -> None:
    _, processor = attached
    made = Copier(processor, CopyGate.constant(0.5))([Neighbourhood([0], [TEXT], [0.5])])
    ids = made.ids[0, 0]
    assert processor.tokenizer.decode(ids[ids >= 0], skip_special_tokens=True).strip() == TEXT
    assert int(ids[-1]) == processor.tokenizer.eos_token_id
    assert made.weights.tolist() == [[1.0]]
    assert made.nearest.tolist() == [0.5]


def test_each_text_has_the_share_it_was_given_and_few_are_taken(attached) -> None:
    _, processor = attached
    near = Neighbourhood([0, 1, 2], ["a", "b", "c"], [0.9, 0.5, 0.1])
    asked = []

    def shares(texts, scores):
        asked.append((texts, scores))
        return [0.75, 0.25]

    made = Copier(processor, CopyGate.constant(0.5), neighbours=2, shares=shares)([near])
    assert asked == [(["a", "b"], [0.9, 0.5])]
    assert made.weights.tolist() == [[0.75, 0.25]]
    alike = Copier(processor, CopyGate.constant(0.5))([near, Neighbourhood()])
    torch.testing.assert_close(alike.weights, torch.tensor([[1 / 3] * 3, [0.0] * 3]))


def test_long_texts_are_cut(attached) -> None:
    _, processor = attached
    made = Copier(processor, CopyGate.constant(0.5))([Neighbourhood([0], ["word " * 500], [0.5])])
    assert made.ids.shape == (1, 1, MOST_TOKENS)


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.2}],
    ids=str,
)
def test_any_model_can_say_what_memory_says(attached, inputs, options) -> None:
    """Untrained weights, a gate that is nearly open: the answer is the nearest text, in batches."""
    model, processor = attached
    batch = inputs(processor, ["why?", "what color is it?"])
    torch.manual_seed(0)
    assert answer(model, processor, batch, **options) != [TEXT] * 2
    shares = lambda texts, scores: [0.99, 0.01]  # noqa: E731
    model.copier = Copier(processor, CopyGate.constant(0.999), shares=shares)
    assert answer(model, processor, batch, **options) == [TEXT] * 2


def test_texts_may_be_passed_by_hand(attached, inputs) -> None:
    model, processor = attached
    batch = inputs(processor)
    gate = CopyGate.constant(0.999)
    made = Copier(processor, gate)([Neighbourhood([0], ["a cat sat"], [0.5])])
    told = answer(model, processor, batch, do_sample=False, copy_gate=gate, **made.inputs())
    assert told == ["a cat sat"]


def test_the_loss_is_that_of_the_mixture(attached, inputs, memories) -> None:
    model, processor = attached
    batch = inputs(processor)
    made = Copier(processor, CopyGate.constant(0.5))([Neighbourhood([0], [TEXT], [0.5])])
    ids = made.ids[0, 0].tolist()
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([ids])], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch.pop("memory_query_ids")
    labels = batch["input_ids"].clone()
    labels[:, : -len(ids)] = -100
    known = {**batch, "labels": labels, "memory_values": memories(1, 2)}
    with pytest.raises(ModelError, match="no copy gate"):
        model(**known, **made.inputs())
    model.copier = Copier(processor, CopyGate.constant(0.9))
    alone, mixture = model(**known).loss.item(), model(**known, **made.inputs())
    assert mixture.loss.item() < 0.5 < alone  # the text was told
    targets = torch.tensor(ids)
    expected = -mixture.logits[0, torch.arange(len(ids)), targets].mean()
    torch.testing.assert_close(mixture.loss, expected)


def test_at_least_one_neighbour_is_copied_from() -> None:
    with pytest.raises(ConfigError, match="at least one neighbour, found 0"):
        Copier(None, CopyGate.constant(0.5), neighbours=0)
