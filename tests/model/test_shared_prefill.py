"""A prompt is read once for all its beams and samples, and the answers are the same."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from tinyalign.model.shared_prefill import SharedPrefillMixin


@pytest.fixture
def attached(build, fake_retriever):
    model, processor = build(k=2)
    processor.memory_enabled = True
    processor.query_tokenizer = lambda texts: torch.tensor([[len(text)] for text in texts])
    model.retriever = fake_retriever(2)
    return model, processor


def as_in_transformers(self, *args, **kwargs):
    return super(SharedPrefillMixin, self)._prefill(*args, **kwargs)


OPTIONS = [
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_prompt_is_read_once(attached, inputs, options) -> None:
    model, processor = attached
    batch = inputs(processor, ["why?", "what color is it over there?"])
    rows: list[int] = []
    watch = model.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["inputs_embeds"])),
        with_kwargs=True,
    )
    answers = []
    for shared in (True, False):
        rows.clear()
        torch.manual_seed(0)
        if shared:
            answers.append(model.generate(**batch, max_new_tokens=6, **options))
        else:
            with patch.object(SharedPrefillMixin, "_prefill", as_in_transformers):
                answers.append(model.generate(**batch, max_new_tokens=6, **options))
        assert (rows[0] == 2) is shared
        assert rows[1] > 2
    watch.remove()
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_where_it_cannot_be_shared_beams_work_as_ever(attached, inputs, options) -> None:
    model, processor = attached
    batch = inputs(processor, ["why?", "what color is it over there?"])
    expected = model.generate(**batch, max_new_tokens=4, num_beams=2)
    found = model.generate(**batch, max_new_tokens=4, num_beams=2, **options)
    assert torch.equal(found, expected)


def test_one_call_leaves_nothing_behind(attached, inputs) -> None:
    model, processor = attached
    batch = inputs(processor)
    model.generate(**batch, max_new_tokens=2, num_beams=2)
    assert model._prompts is None
