"""A memory that can be copied from: what retrieved texts say next, mixed with what the LLM says.

The texts of a query's neighbours, weighed by similarity, give a distribution over the next token:
each place in a text whose preceding tokens match the end of what was generated so far votes for
the token that follows there, and a longer match counts `decay` times more for each token. At the
start of an answer the first tokens vote; a whole answer that was followed from its start is the
weighted vote of the neighbours, as a trie. The distribution is mixed with the LLM's by a gate,

    p(y) = (1 - g) p_LM(y) + g p_mem(y),

as in kNN-LM (Khandelwal et al., ICLR 2020) and pointer-generators (See et al., ACL 2017). The gate
is a logistic function of the evidence: how long the match is, how far the texts agree, how sure
the LLM is, how near the nearest neighbour is. Where nothing matches, it is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tinyalign.data.collator import IGNORED
from tinyalign.errors import ConfigError, ModelError

NONE, START, BEFORE = -1, -2, -3
"""No token: behind a text; at the start of an answer; before its start."""
LONGEST = 6
"""Tokens of a match that are told apart."""
COPY_INPUTS = ("copy_ids", "copy_weights", "copy_nearest")
"""Arguments that bring `CopyTexts` to a model."""
CHUNK = 256
"""Tokens whose distributions are in memory at once."""
FEATURES = (
    "one", "match", "start", "agreement", "LLM agrees", "LLM entropy", "LLM certainty",
    "similarity",
)  # fmt: skip
"""What the gate sees, in the order of its weights."""


@dataclass(frozen=True)
class CopyTexts:
    """What a batch of queries can copy from.

    ids (B, n, T) int64, the tokens of n texts with the end-of-answer token, `NONE` behind them;
    weights (B, n) float, each text's share, summing to 1 (0 for a query without neighbours);
    nearest (B,) float, the similarity of the nearest neighbour.
    """

    ids: Tensor
    weights: Tensor
    nearest: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """As arguments of `forward` and `generate`."""
        return dict(zip(COPY_INPUTS, (self.ids, self.weights, self.nearest)))

    def rows(self, index: Tensor) -> CopyTexts:
        """Those of some queries; an index may come several times."""
        return CopyTexts(self.ids[index], self.weights[index], self.nearest[index])

    def to(self, device: Any) -> CopyTexts:
        """On another device."""
        return CopyTexts(*(one.to(device) for one in (self.ids, self.weights, self.nearest)))


def take_copy_texts(arguments: dict[str, Any]) -> CopyTexts | None:
    """copy_ids, copy_weights and copy_nearest, taken out of a call's arguments; None without."""
    found = [arguments.pop(name, None) for name in COPY_INPUTS]
    if all(one is None for one in found):
        return None
    if any(one is None for one in found):
        missing = [name for name, one in zip(COPY_INPUTS, found) if one is None]
        raise ModelError(
            f"Texts to copy from come as {', '.join(COPY_INPUTS)} together; "
            f"{', '.join(missing)} is missing."
        )
    return CopyTexts(*found)


def copy_texts(
    ids: Sequence[Sequence[Sequence[int]]],
    weights: Sequence[Sequence[float]],
    nearest: Sequence[float],
) -> CopyTexts:
    """Padded tensors of the token ids of each query's texts."""
    n = max((len(texts) for texts in ids), default=0)
    longest = max((len(text) for texts in ids for text in texts), default=0)
    padded = torch.full((len(ids), n, longest), NONE, dtype=torch.int64)
    shares = torch.zeros(len(ids), n)
    for b, texts in enumerate(ids):
        for j, text in enumerate(texts):
            padded[b, j, : len(text)] = torch.tensor(text, dtype=torch.int64)
        shares[b, : len(texts)] = torch.tensor(weights[b])
    return CopyTexts(padded, shares, torch.tensor(nearest, dtype=torch.float32))


@dataclass(frozen=True)
class CopyGate:
    """How much is copied: weights of `FEATURES`, and how much a longer match counts."""

    weights: tuple[float, ...]
    decay: float = 8.0

    def __post_init__(self) -> None:
        if len(self.weights) != len(FEATURES):
            raise ConfigError(
                f"a copy gate has {len(FEATURES)} weights ({', '.join(FEATURES)}), found "
                f"{len(self.weights)}"
            )

    @classmethod
    def of(cls, config: Any) -> CopyGate | None:
        """The one in a model's config; None where it copies nothing."""
        found = config.memory_copy
        return None if found is None else cls(tuple(found["weights"]), found["decay"])

    @classmethod
    def constant(cls, share: float, decay: float = 8.0) -> CopyGate:
        """A gate that is open by the same share wherever anything matches."""
        if not 0.0 < share < 1.0:
            raise ConfigError(f"the share that is copied lies between 0 and 1, found {share}")
        bias = float(torch.logit(torch.tensor(share)))
        return cls((bias, *[0.0] * (len(FEATURES) - 1)), decay)


def next_tokens(
    texts: CopyTexts, tail: Tensor, vocabulary: int, decay: float
) -> tuple[Tensor, Tensor]:
    """What the texts say next: p_mem (R, V), 0 where nothing matches, and the match (R,).

    texts: one row a row of `tail` (R, LONGEST), the last tokens of each answer so far (`tails`).
    The match is the number of tokens that agree, at most `LONGEST`; the start of an answer counts
    as one.
    """
    ids = texts.ids
    match = _matches(ids, tail)  # (R, n, T)
    evidence = texts.weights[..., None] * decay ** match.float()
    evidence = torch.where((match > 0) & (ids >= 0), evidence, 0.0)
    total = evidence.sum(dim=(1, 2))  # (R,)
    scaled = evidence / total.clamp(min=1e-30)[:, None, None]
    found = torch.zeros(len(ids), vocabulary, device=ids.device)
    found.scatter_add_(1, ids.clamp(min=0).flatten(1), scaled.flatten(1))
    longest = torch.where(evidence > 0, match, 0).flatten(1)
    best = longest.amax(dim=1) if longest.shape[1] else longest.new_zeros(len(ids))
    return found, torch.where(total > 0, best, 0)


def tails(generated: Tensor) -> Tensor:
    """The last `LONGEST` tokens (R, LONGEST) of answers so far (R, t), their start before them."""
    rows = len(generated)
    opening = generated.new_full((rows, LONGEST), BEFORE)
    opening[:, -1] = START
    return torch.cat([opening, generated], dim=1)[:, -LONGEST:]


def _matches(ids: Tensor, tail: Tensor) -> Tensor:
    """(R, n, T): how many tokens before each place agree with the end of `tail`."""
    rows, n, length = ids.shape
    match = torch.zeros_like(ids)
    alive = torch.ones(rows, n, length, dtype=torch.bool, device=ids.device)
    opened = torch.cat([ids.new_full((rows, n, 1), START), ids], dim=2)  # (R, n, 1 + T)
    for back in range(1, min(LONGEST, length) + 1):
        before = torch.full_like(ids, NONE)
        before[..., back - 1 :] = opened[..., : length - back + 1]
        alive = alive & (before == tail[:, LONGEST - back, None, None])
        match += alive
    return match


def gate(features: Tensor, weights: Tensor, match: Tensor) -> Tensor:
    """g (R,): the share that is copied; 0 where nothing matches."""
    return torch.where(match > 0, torch.sigmoid(features @ weights), 0.0)


def evidence_features(
    log_probs: Tensor, copied: Tensor, match: Tensor, tail: Tensor, nearest: Tensor
) -> Tensor:
    """`FEATURES` (R, F) of log p_LM (R, V), p_mem (R, V), the match (R,), the last tokens said
    (R, LONGEST) and the similarity of the nearest neighbour (R,)."""
    probs = log_probs.exp()
    entropy = -(probs * log_probs.clamp(min=-1e4)).sum(dim=1)
    return torch.stack(
        [
            torch.ones_like(nearest),
            match.float() / LONGEST,
            (tail[:, -1] == START).float(),
            copied.amax(dim=1),
            (probs * copied).sum(dim=1).sqrt(),
            entropy / 5.0,
            probs.amax(dim=1),
            nearest,
        ],
        dim=1,
    )


def mixed(log_probs: Tensor, texts: CopyTexts, tail: Tensor, gate_of: CopyGate) -> Tensor:
    """log p (R, V) of the mixture, from log p_LM (R, V) and the last tokens said (R, LONGEST)."""
    copied, match = next_tokens(texts, tail, log_probs.shape[1], gate_of.decay)
    features = evidence_features(log_probs, copied, match, tail, texts.nearest)
    weights = torch.tensor(gate_of.weights, device=features.device)
    share = gate(features, weights, match)[:, None]
    said = torch.where(share < 1, torch.log1p(-share) + log_probs, -torch.inf)
    return torch.logaddexp(said, torch.log(share) + torch.log(copied))


def teacher_tails(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(S, LONGEST) tails and (S,) rows of every supervised token of labels (B, L), in order.

    Each run of supervised tokens is an answer of its own; the first token of a row is never
    predicted, as in the loss.
    """
    found: list[Tensor] = []
    owners: list[int] = []
    for row, line in enumerate(labels.tolist()):
        said: list[int] = []
        for at, token in enumerate(line):
            if token == IGNORED:
                said = []
                continue
            if at:
                so_far = torch.tensor([said], dtype=torch.int64).reshape(1, -1)
                found.append(tails(so_far)[0])
                owners.append(row)
            said.append(token)
    stacked = torch.stack(found) if found else torch.zeros(0, LONGEST, dtype=torch.int64)
    return stacked.to(labels.device), torch.tensor(owners, dtype=torch.int64, device=labels.device)


def mixed_supervised(logits: Tensor, labels: Tensor, texts: CopyTexts, gate_of: CopyGate) -> Tensor:
    """log p (S, V) of the mixture for each supervised token of labels (B, L), from its logits
    (S, V): what a loss with memory to copy from is taken of."""
    tail, owners = teacher_tails(labels)
    parts = [
        mixed(torch.log_softmax(part.float(), dim=-1), texts.rows(rows), last, gate_of)
        for part, rows, last in zip(logits.split(CHUNK), owners.split(CHUNK), tail.split(CHUNK))
    ]
    return torch.cat(parts) if parts else logits.float()


class CopyFromMemory(LogitsProcessor):
    """Mixes what memory says into each step of `generate`: greedy, sampling, beams, batches."""

    def __init__(self, texts: CopyTexts, gate_of: CopyGate, prompt_length: int) -> None:
        """texts: one row a prompt; rows of beams and samples follow one another by prompt."""
        self.texts, self.gate_of, self.prompt_length = texts, gate_of, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """log p of the mixture (R, V); scores are logits, or log p already, as beams have them."""
        rows, queries = len(input_ids), len(self.texts.ids)
        owner = torch.arange(rows, device=scores.device) // (rows // queries)
        log_probs = torch.log_softmax(scores.float(), dim=-1)
        texts = self.texts.to(scores.device).rows(owner)
        found = mixed(log_probs, texts, tails(input_ids[:, self.prompt_length :]), self.gate_of)
        return found.masked_fill(torch.isneginf(scores), -torch.inf)  # what is forbidden stays so
