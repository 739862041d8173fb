"""The linear skip's start in closed form: ridge from latent j to the LLM's embedding of token j."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinyalign.errors import ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.perceiver import Perceiver
from tinyalign.training.perceiver.text_loss import text_targets

LAMBDA = 1e-2
FEWEST = 200
MOST_ENTRIES = 20_000


@dataclass(frozen=True)
class ClosedForm:
    """What `MemoryConnector.start_linear_skip` takes."""

    weight: Tensor
    """(n, 96, d) float32: one map for each text latent."""
    bias: Tensor
    """(n, d) float32."""
    r2: float
    """Share of the embeddings' variance that the maps explain on the bank's own entries."""


def token_table(tokenizer: Tokenizer, llm_tokenizer: Any, embeddings: Tensor) -> Tensor:
    """(V, d) float32: for each token of the Perceiver the LLM's embedding of the same string.

    The mean over the LLM's tokens where it needs several; zeros for what is no text by itself
    (padding, parts of a character).
    """
    table = torch.zeros(tokenizer.get_vocab_size(), embeddings.shape[1])
    for token in range(1, len(table)):
        text = tokenizer.decode([token], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            continue
        ids = llm_tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids:
            table[token] = embeddings[ids].float().mean(dim=0).cpu()
    return table


def closed_form_skip(
    bank: MemoryBank, perceiver: Perceiver, llm_tokenizer: Any, embeddings: Tensor
) -> ClosedForm:
    """Ridge regressions from the bank's values to the embeddings of their texts.

    embeddings (V_llm, d): the LLM's input embeddings. A latent that stands for a span is mapped
    to the mean over it. A position with fewer than 200 examples takes over the map before it.
    Raises ConfigError for a bank whose first latent has fewer than 2 examples.
    """
    rows = torch.from_numpy(bank.live[:: max(1, -(-len(bank) // MOST_ENTRIES))])
    values = bank.gather(rows)  # (N, 32, 96)
    ids = perceiver.encode_text([bank.texts[i] for i in rows.tolist()])[0]
    table = token_table(perceiver.tokenizer, llm_tokenizer, embeddings.detach())
    n_latents = perceiver.network.config.n_text_latents
    targets = text_targets(ids, n_latents)
    spoken = table[targets.token].square().sum(dim=1) > 0  # tokens that are text by themselves
    wanted = torch.zeros(len(rows), n_latents, table.shape[1])
    weight = torch.zeros(len(rows), n_latents)
    where = (targets.sample[spoken], targets.latent[spoken])
    share = targets.share[spoken]
    wanted.index_put_(where, table[targets.token[spoken]] * share[:, None], accumulate=True)
    weight.index_put_(where, share, accumulate=True)
    return _fit(values, wanted, weight, FEWEST)


def _fit(values: Tensor, wanted: Tensor, weight: Tensor, fewest: int) -> ClosedForm:
    maps: list[Tensor] = []
    biases: list[Tensor] = []
    missed = variance = 0.0
    for j in range(wanted.shape[1]):
        there = weight[:, j] > 0
        if int(there.sum()) < (fewest if maps else 2):
            if not maps:
                raise ConfigError(
                    "the bank's texts are too few or empty for a closed-form start; set "
                    "memory.fusion.closed_form to false"
                )
            maps.append(maps[-1])
            biases.append(biases[-1])
            continue
        x = values[there, j]  # (N_j, 96)
        y = wanted[there, j] / weight[there, j][:, None]  # (N_j, d)
        a, b, left, total = _ridge(x.double(), y.double())
        maps.append(a)
        biases.append(b)
        missed, variance = missed + left, variance + total
    r2 = 1 - missed / variance if variance else 0.0
    return ClosedForm(torch.stack(maps), torch.stack(biases), r2)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """(weight (w, d), bias (d,), squared error, variance) of y on x, both centred first."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    xc, yc = x - x_mean, y - y_mean
    penalty = LAMBDA * len(xc) * xc.var(unbiased=False).clamp(min=1e-12)
    gram = xc.T @ xc + penalty * torch.eye(xc.shape[1], dtype=xc.dtype)
    solved = torch.linalg.solve(gram, xc.T @ yc)
    left = (yc - xc @ solved).square().sum().item()
    bias = y_mean - x_mean @ solved
    return solved.float(), bias.float(), left, yc.square().sum().item()
