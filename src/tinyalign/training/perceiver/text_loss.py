"""Texts as the Perceiver's targets: which latent answers for which token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyalign.memory.keys.text import PAD_ID
from tinyalign.memory.perceiver import text_spans


@dataclass(frozen=True)
class TextTargets:
    """Targets of a batch as flat lists over its real tokens, T of them."""

    sample: Tensor
    """(T,) int64: row of the batch."""
    latent: Tensor
    """(T,) int64: the text latent that answers for the token."""
    token: Tensor
    """(T,) int64: the token's id."""
    share: Tensor
    """(T,) float32: 1 / length of the token's span; 1 for texts that fit, token by latent."""

    @property
    def fits(self) -> Tensor:
        """(T,) bool: tokens with a latent of their own."""
        return self.share == 1.0


def text_targets(ids: Tensor, n_latents: int) -> TextTargets:
    """Targets of ids (B, L), padded with 0, by the rule of `memory.text_spans`.

    A text with at most `n_latents` tokens: latent j answers for token j. A longer one: latent j
    answers for the tokens of its span, each with an equal share.
    """
    lengths = (ids != PAD_ID).sum(dim=1).tolist()
    sample: list[int] = []
    latent: list[int] = []
    position: list[int] = []
    share: list[float] = []
    for b, length in enumerate(lengths):
        owner, part = _owners(length, n_latents)
        sample += [b] * length
        position += range(length)
        latent += owner
        share += part
    rows, columns = torch.tensor(sample, dtype=torch.long), torch.tensor(position, dtype=torch.long)
    return TextTargets(
        rows, torch.tensor(latent, dtype=torch.long), ids[rows, columns], torch.tensor(share)
    )


def _owners(length: int, n_latents: int) -> tuple[list[int], list[float]]:
    """For each of `length` tokens: its latent, and its share of that latent."""
    if length <= n_latents:
        return list(range(length)), [1.0] * length
    spans = text_spans(length, n_latents)
    owner = [j for j, span in enumerate(spans) for _ in span]
    return owner, [1.0 / len(spans[j]) for j in owner]


def text_loss(logits: Tensor, targets: TextTargets) -> Tensor:
    """Mean cross-entropy a latent (nats): logits (B, n_latents, V) against its token or bag.

    For a span the target is the even distribution over its tokens, so its loss cannot fall below
    the entropy of that bag; for a text that fits, this is the plain cross-entropy.
    """
    n_latents = logits.shape[1]
    slot = targets.sample * n_latents + targets.latent  # (T,)
    used, index = slot.unique(return_inverse=True)
    rows = logits.flatten(0, 1)[used].float().log_softmax(dim=-1)  # (U, V)
    return -(rows[index, targets.token] * targets.share).sum() / max(1, len(used))


def silence_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of latents that no token is left for: they should say padding.

    logits (B, n_latents, V), mask (B, L) of the texts; 0 where all latents have tokens.
    """
    lengths = mask.sum(dim=1)
    beyond = torch.arange(logits.shape[1], device=mask.device) >= lengths[:, None]  # (B, n)
    silent = logits[beyond].float()
    if not len(silent):
        return logits.sum() * 0.0
    wanted = torch.full((len(silent),), PAD_ID, device=logits.device)
    return nn.functional.cross_entropy(silent, wanted)


@dataclass
class TextScore:
    """Running counts of how well texts can be read back."""

    right: int = 0
    """Tokens of texts that fit, named exactly."""
    fitting: int = 0
    """Tokens of texts that fit."""
    recalled: int = 0
    """Tokens of longer texts found among their latent's best guesses."""
    spanned: int = 0
    """Tokens of longer texts."""

    def add(self, logits: Tensor, targets: TextTargets) -> None:
        """Count a batch: logits (B, n_latents, V)."""
        picked = logits[targets.sample, targets.latent].float()  # (T, V)
        fits = targets.fits
        self.right += int((picked[fits].argmax(dim=-1) == targets.token[fits]).sum())
        self.fitting += int(fits.sum())
        long = ~fits
        if long.any():
            # A span of n tokens: its token counts as recalled among the n best guesses.
            wanted = picked[long].gather(1, targets.token[long][:, None])
            rank = (picked[long] > wanted).sum(dim=-1)
            room = (1 / targets.share[long]).round()
            self.recalled += int((rank < room).sum())
            self.spanned += int(long.sum())

    @property
    def token_accuracy(self) -> float | None:
        """Share of tokens read back exactly, of texts that fit; None without such texts."""
        return self.right / self.fitting if self.fitting else None

    @property
    def long_text_recall(self) -> float | None:
        """Share of tokens recalled, order inside a span aside, of texts that do not fit."""
        return self.recalled / self.spanned if self.spanned else None
