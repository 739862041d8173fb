"""Text as memories see it: a small byte-level BPE of their own, whatever LLM reads them later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tinyalign.errors import ConfigError

PAD_ID = 0
# Text is lower-cased before it is encoded, so nothing a user writes can spell this token.
PAD_TOKEN = "<PAD>"
SMALLEST_VOCABULARY = 257  # 256 bytes and the padding


def normalise(text: str) -> str:
    """What both keys and values make of a text first: lower case, no outer white space."""
    return text.strip().lower()


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """Train the byte-level BPE on a corpus; any text can be encoded, padding has id 0.

    Raises ConfigError for a vocabulary that cannot hold the 256 bytes and the padding.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least "
            f"{SMALLEST_VOCABULARY} (256 bytes and the padding)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((normalise(text) for text in texts), trainer)
    return tokenizer


def encode_text(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Texts to ids (B, L) int64, padded at the end with 0, and their mask (B, L) bool.

    L is the longest text of the batch, at least 1 and at most `max_tokens`; what lies beyond
    is cut off. An empty text is a row of padding.
    """
    encodings = tokenizer.encode_batch([normalise(text) for text in texts])
    rows = [encoding.ids[:max_tokens] for encoding in encodings]
    length = max([1, *(len(row) for row in rows)])
    ids = torch.full((len(rows), length), PAD_ID, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, ids != PAD_ID


def text_spans(n_tokens: int, n_latents: int) -> list[range]:
    """Which tokens each text latent stands for: how a text of any length fits the latents.

    A text with at most `n_latents` tokens gives token *j* to latent *j* and leaves the rest
    empty: nothing is lost. A longer one is cut into `n_latents` contiguous spans whose lengths
    differ by at most one (the longer ones first); latent *j* then summarises span *j* as a bag
    of tokens, so the order inside a span is what the summary gives up.

    Returns `n_latents` ranges that cover 0..n_tokens-1 in order without overlap.
    Raises ConfigError without latents or for a negative length.
    """
    if n_latents < 1 or n_tokens < 0:
        raise ConfigError(
            f"text_spans needs n_latents >= 1 and n_tokens >= 0, found {n_latents} and {n_tokens}"
        )
    length, longer = divmod(n_tokens, n_latents)
    if n_tokens <= n_latents:
        length, longer = 0, n_tokens
    starts = [j * length + min(j, longer) for j in range(n_latents + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
