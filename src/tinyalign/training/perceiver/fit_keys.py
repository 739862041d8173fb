"""Fitting a key function on the corpus: means and maps in closed form, no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinyalign.data.sample import Sample
from tinyalign.memory.keys.aligned import AlignedKeyFunction, fit_aligned
from tinyalign.memory.keys.image_text import KeyFunction
from tinyalign.memory.keys.text import encode_text, normalise
from tinyalign.memory.perceiver import AnyKeyFunction
from tinyalign.training.caches.features import Features
from tinyalign.training.recipe.recipe import KeyKind

BLOCK = 64
MEASURED = 20_000
"""So many pairs are enough for means."""
DIRECTIONS = 5_000
"""So many pairs are enough for the directions in which features vary."""
FITTED = 300_000
"""So many pairs are enough for the aligned maps."""
MAX_TOKENS = 256
IMAGE_WIDTH, TEXT_WIDTH = 384, 128
"""Of a pooled key: 512 numbers together, a kilobyte an entry in half precision."""


def fit_key_function(
    samples: Sequence[Sample],
    features: Features,
    usable: Sequence[int],
    tokenizer: Tokenizer,
    kind: KeyKind,
    alpha: float,
) -> AnyKeyFunction:
    """The key function of a recipe, from the pairs `usable` of the corpus alone."""
    if kind == "aligned":
        return _fit_aligned(samples, features, _thinned(usable, FITTED), tokenizer)
    return _fit_pooled(samples, features, _thinned(usable, MEASURED), tokenizer, kind, alpha)


def _thinned(usable: Sequence[int], most: int) -> Sequence[int]:
    return usable[:: max(1, -(-len(usable) // most))]


def _blocks(usable: Sequence[int]) -> Iterator[Sequence[int]]:
    return (usable[start : start + BLOCK] for start in range(0, len(usable), BLOCK))


def _fit_pooled(
    samples: Sequence[Sample],
    features: Features,
    usable: Sequence[int],
    tokenizer: Tokenizer,
    kind: KeyKind,
    alpha: float,
) -> KeyFunction:
    """Mean image features in their principal directions, and a random vector for each token.

    Token vectors are seeded noise times the token's inverse document frequency among
    instructions: similar texts share rare words, and no training can make a bank's keys stale.
    """
    instructions = [samples[i].instruction for i in usable]
    vocabulary = tokenizer.get_vocab_size()
    table = torch.randn(vocabulary, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(vocabulary)
    distinct = sorted({text for text in instructions if text})
    for encoding in tokenizer.encode_batch([normalise(text) for text in distinct]):
        counts[list(set(encoding.ids))] += 1
    table *= torch.log((1 + len(distinct)) / (1 + counts))[:, None] + 0.1
    uses_text = alpha < 1.0

    def ids() -> Iterator[Tensor]:
        for start in range(0, len(usable), BLOCK):
            yield encode_text(tokenizer, instructions[start : start + BLOCK], MAX_TOKENS)[0]

    return KeyFunction.fit(
        (features.batch(rows) for rows in _blocks(usable)),
        ids() if uses_text else None,
        kind="attention" if kind == "attention" else "pooled",
        alpha=alpha,
        text_table=table if uses_text else None,
        image_projection=principal_directions(features, usable) if kind == "pooled" else None,
    )


def principal_directions(
    features: Features, usable: Sequence[int], width: int = IMAGE_WIDTH
) -> Tensor | None:
    """(D, width): the directions in which pooled features vary most; None where D is no more."""
    if not usable:
        return None
    blocks = [features.batch(rows).mean(dim=1) for rows in _blocks(_thinned(usable, DIRECTIONS))]
    pooled = torch.cat(blocks).double().cpu()  # (N, D)
    if pooled.shape[1] <= width:
        return None
    centred = pooled - pooled.mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return directions[:, -width:].flip(1).float().contiguous()


def _fit_aligned(
    samples: Sequence[Sample],
    features: Features,
    usable: Sequence[int],
    tokenizer: Tokenizer,
) -> AlignedKeyFunction:
    """Texts' semantic space and the cross-fitted maps into it."""
    hashes = features.image_hashes()
    pooled = torch.cat([features.batch(rows).mean(dim=1) for rows in _blocks(usable)])
    texts, _ = encode_text(tokenizer, [samples[i].text for i in usable], MAX_TOKENS)
    asked, _ = encode_text(tokenizer, [samples[i].instruction for i in usable], MAX_TOKENS)
    names = [hashes[i] for i in usable]
    return fit_aligned(pooled, texts, asked, names, tokenizer.get_vocab_size())
