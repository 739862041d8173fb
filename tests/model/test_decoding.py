"""Greedy, beams, and the best of several answers."""

from __future__ import annotations

import pytest
import torch

from tinyalign.errors import ConfigError
from tinyalign.model.decoding import Decoding, decode


@pytest.fixture
def asked(build, fake_retriever, inputs):
    """A tiny model with memory, its processor, and two prompts."""
    model, processor = build(k=2)
    processor.memory_enabled = True
    processor.query_tokenizer = lambda texts: torch.tensor([[len(text)] for text in texts])
    model.retriever = fake_retriever(2)
    return model, processor, dict(inputs(processor, ["why?", "what color is it?"]))


def test_greedy_by_default(asked) -> None:
    model, processor, batch = asked
    found = decode(model, batch, processor.tokenizer, Decoding(6), None)
    output = model.generate(**batch, max_new_tokens=6, do_sample=False)
    new = output[:, batch["input_ids"].shape[1] :]
    texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    assert found == [text.strip() for text in texts]


def test_the_chooser_sees_every_answer_and_what_was_looked_up_once(asked) -> None:
    model, processor, batch = asked
    seen = []

    def choose(row, candidates, looked_up) -> int:
        seen.append((row, list(candidates), looked_up))
        return len(candidates) - 1

    greedy = decode(model, batch, processor.tokenizer, Decoding(6), None)
    model.retriever.queries.clear()
    found = decode(model, batch, processor.tokenizer, Decoding(6, best_of=4), choose)
    assert [row for row, _, _ in seen] == [0, 1]
    assert [len(candidates) for _, candidates, _ in seen] == [4, 4]
    assert [candidates[0] for _, candidates, _ in seen] == greedy
    assert found == [candidates[-1] for _, candidates, _ in seen]
    assert len(model.retriever.queries) == 1
    assert all(looked_up.ids == [["a", "a"]] * 2 for _, _, looked_up in seen)
    assert model.last_retrieval is seen[0][2]


def test_all_beams_are_candidates(asked) -> None:
    model, processor, batch = asked
    seen = []
    decoding = Decoding(4, beams=3, best_of=3)
    choose = lambda row, candidates, _: seen.append(candidates) or 0  # noqa: E731
    best = decode(model, batch, processor.tokenizer, decoding, choose)
    assert [len(one) for one in seen] == [3, 3]
    assert best == decode(model, batch, processor.tokenizer, Decoding(4, beams=3), None)


def test_several_answers_need_somebody_who_chooses(asked) -> None:
    model, processor, batch = asked
    with pytest.raises(ConfigError, match="needs a memory bank"):
        decode(model, batch, processor.tokenizer, Decoding(4, best_of=2), None)


@pytest.mark.parametrize("options", [{"beams": 0}, {"best_of": 0}, {"temperature": 0.0}], ids=str)
def test_settings_that_cannot_be_are_refused(options) -> None:
    with pytest.raises(ConfigError, match=r"found 0|positive|at least 1"):
        Decoding(**options)


def test_the_record_says_how() -> None:
    assert Decoding(8).as_dict() == {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}
    assert Decoding(8, 2, 5).as_dict()["best_of"] == 5
