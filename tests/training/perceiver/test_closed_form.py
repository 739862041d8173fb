"""The closed-form start: a ridge that recovers a linear map, and what it maps to."""

from __future__ import annotations

import pytest
import torch

from tinyalign.errors import ConfigError
from tinyalign.memory.perceiver import train_tokenizer
from tinyalign.training.perceiver.closed_form import _fit, token_table


def test_a_linear_map_is_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 32, 8, generator=generator)
    maps = torch.randn(3, 8, 5, generator=generator)
    wanted = torch.einsum("njw,jwd->njd", values[:, :3], maps) + 2.0
    start = _fit(values, wanted, torch.ones(4000, 3), fewest=200)
    assert start.r2 > 0.99
    torch.testing.assert_close(start.weight, maps, atol=0.08, rtol=0.05)
    torch.testing.assert_close(start.bias, torch.full((3, 5), 2.0), atol=0.05, rtol=0.05)


def test_a_rare_position_takes_over_the_map_before_it() -> None:
    values, wanted = torch.randn(300, 32, 4), torch.randn(300, 3, 6)
    weight = torch.ones(300, 3)
    weight[5:, 1] = 0.0  # 5 examples only
    start = _fit(values, wanted, weight, fewest=200)
    assert torch.equal(start.weight[1], start.weight[0])
    assert not torch.equal(start.weight[2], start.weight[0])


def test_no_texts_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="closed_form"):
        _fit(torch.randn(9, 32, 4), torch.zeros(9, 2, 6), torch.zeros(9, 2), fewest=2)


def test_a_token_becomes_the_mean_of_the_llms_embeddings(make_tokenizer) -> None:
    tokenizer = train_tokenizer(["a black dog", "a black ball"], 280)
    llm = make_tokenizer()
    embeddings = torch.randn(len(llm), 7)
    table = token_table(tokenizer, llm, embeddings)
    token = tokenizer.encode(" black").ids[-1]
    text = tokenizer.decode([token])
    ids = llm(text, add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(table[token], embeddings[ids].mean(dim=0))
    assert not table[0].any()  # padding is no text
