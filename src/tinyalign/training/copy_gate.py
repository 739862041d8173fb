"""Fitting the gate of a memory that can be copied from, on training samples.

The gate is a logistic function of what is seen at a step (`model.copying.FEATURES`). It is fitted
by maximum likelihood of the mixture on a few hundred training samples, each with the neighbours
that it was trained with: none of its own, its own fold left out. The LLM is not touched: one pass
over those samples, then a convex-like problem of eight numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyalign.data.collator import Collator
from tinyalign.log import logger, progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.search.neighbours import NeighbourTable
from tinyalign.model.copier import Copier
from tinyalign.model.copying import (
    CHUNK,
    FEATURES,
    CopyGate,
    CopyTexts,
    evidence_features,
    gate,
    next_tokens,
    teacher_tails,
)
from tinyalign.model.protocols import Neighbourhood

SAMPLES = 200
"""Training samples that a gate is fitted on."""
BATCH = 16
DECAYS = (4.0, 8.0, 16.0)
"""What a longer match may count, for each token."""
OPENING = 0.2
"""Share that is copied before anything is fitted."""
SHRINKAGE = 1e-3
"""Penalty on the squared weights, in nats a token."""


@dataclass(frozen=True)
class Evidence:
    """What was seen at each supervised token, and how likely both speakers found it."""

    features: Tensor
    """(S, F)"""
    said: Tensor
    """p_LM of the token (S,)"""
    copied: Tensor
    """p_mem of the token (S,)"""
    match: Tensor
    """(S,)"""


def fit_copy_gate(
    model: Any,
    items: Callable[[int], dict[str, Any]],
    indices: Sequence[int],
    copier: Copier,
    bank: MemoryBank,
    table: NeighbourTable,
    seed: int = 0,
) -> CopyGate:
    """The gate that makes the answers of training samples most likely.

    items: a sample's number to its training item; indices: samples that can be used; table: their
    neighbours in `bank`. Deterministic.
    """
    drawn = np.random.default_rng(seed).permutation(np.asarray(indices))[:SAMPLES].tolist()
    found: dict[float, list[Evidence]] = {decay: [] for decay in DECAYS}
    pad = copier.processor.tokenizer.pad_token_id
    with progress("Fitting the copy gate", len(drawn)) as advance, torch.no_grad():
        for start in range(0, len(drawn), BATCH):
            rows = drawn[start : start + BATCH]
            texts = copier([neighbourhood(bank, table, row) for row in rows])
            logits, labels = _taught(model, Collator(pad)([items(row) for row in rows]))
            for decay in DECAYS:
                found[decay].append(_evidence(logits, labels, texts, decay))
            advance(len(rows))
    fitted = {decay: _fitted(_joined(parts)) for decay, parts in found.items()}
    decay = min(fitted, key=lambda one: fitted[one][1])
    weights, after, before = fitted[decay]
    logger.info(
        "copy gate: %.3f nats a token instead of %.3f on %d training samples (a match counts "
        "%g-fold a token)", after, before, len(drawn), decay,
    )  # fmt: skip
    return CopyGate(tuple(round(one, 4) for one in weights.tolist()), decay)


def neighbourhood(bank: MemoryBank, table: NeighbourTable, row: int) -> Neighbourhood:
    """What the neighbours of a sample say, nearest first."""
    scores = table.scores[row].masked_fill(table.indices[row] < 0, -torch.inf)
    order = scores.argsort(descending=True, stable=True)[: int((scores > -torch.inf).sum())]
    rows = table.indices[row, order].tolist()
    entries = bank.entries.at(rows)
    return Neighbourhood(rows, [entries[i].answer for i in rows], scores[order].tolist())


def _taught(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits (S, V) of the supervised tokens, and the labels (B, L)."""
    batch = {name: batch[name] for name in batch if name not in ("index", "n_supervised")}
    moved = {
        name: one.to(model.device) if isinstance(one, Tensor) else one
        for name, one in batch.items()
    }
    output = model(**moved, supervised_only=True, use_cache=False)
    return output.logits[0].float(), moved["labels"]


def _evidence(logits: Tensor, labels: Tensor, texts: CopyTexts, decay: float) -> Evidence:
    tail, owners = teacher_tails(labels)
    following = labels[:, 1:][labels[:, 1:] != -100]
    parts = []
    for start in range(0, len(tail), CHUNK):
        part = slice(start, start + CHUNK)
        own = texts.to(logits.device).rows(owners[part])
        log_probs = torch.log_softmax(logits[part], dim=-1)
        copied, match = next_tokens(own, tail[part], log_probs.shape[1], decay)
        features = evidence_features(log_probs, copied, match, tail[part], own.nearest)
        target = following[part, None]
        said = log_probs.gather(1, target)[:, 0].exp()
        parts.append(Evidence(features, said, copied.gather(1, target)[:, 0], match))
    return _joined(parts)


def _joined(parts: Sequence[Evidence]) -> Evidence:
    names = ("features", "said", "copied", "match")
    return Evidence(*(torch.cat([getattr(one, name) for one in parts]).cpu() for name in names))


def _fitted(seen: Evidence) -> tuple[Tensor, float, float]:
    """(weights, nats a token with them, nats a token of the LLM alone)."""
    weights = torch.zeros(len(FEATURES), dtype=torch.float64)
    weights[0] = torch.logit(torch.tensor(OPENING))
    weights.requires_grad_(True)
    features, said, copied = (one.double() for one in (seen.features, seen.said, seen.copied))

    def loss() -> Tensor:
        share = gate(features, weights, seen.match)
        return -((1 - share) * said + share * copied).clamp(min=1e-12).log().mean()

    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = loss() + SHRINKAGE * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(closure)
    before = float(-said.clamp(min=1e-12).log().mean())
    return weights.detach(), float(loss().detach()), before
