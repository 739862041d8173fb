"""Fitting our key functions on a corpus: means and maps in closed form, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tinyalign.errors import ConfigError
from tinyalign.memory.keys.aligned import AlignedKeyFunction, fit_aligned
from tinyalign.memory.keys.image_text import ImageTextKeyFunction
from tinyalign.memory.keys.joint import JointKeyFunction, pooled
from tinyalign.memory.keys.protocol import KeyCorpus, KeyMaker
from tinyalign.memory.keys.text import encode_text, normalise

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


def _thinned(rows: Sequence[int], most: int) -> Sequence[int]:
    return rows[:: max(1, -(-len(rows) // most))]


def _blocks(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def fit_image_text(corpus: KeyCorpus) -> ImageTextKeyFunction:
    """Mean image features in their principal directions, and a random vector for each token.

    Token vectors are seeded noise times the token's inverse document frequency among
    instructions: similar texts share rare words, and no training can make a bank's keys stale.
    """
    rows = _thinned(range(len(corpus)), MEASURED)
    instructions = [corpus.instructions[i] for i in rows]
    vocabulary = corpus.tokenizer.get_vocab_size()
    table = torch.randn(vocabulary, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(vocabulary)
    distinct = sorted({text for text in instructions if text})
    for encoding in corpus.tokenizer.encode_batch([normalise(text) for text in distinct]):
        counts[list(set(encoding.ids))] += 1
    table *= torch.log((1 + len(distinct)) / (1 + counts))[:, None] + 0.1
    uses_text = corpus.alpha < 1.0

    def ids() -> Iterator[Tensor]:
        for start in range(0, len(instructions), BLOCK):
            yield encode_text(corpus.tokenizer, instructions[start : start + BLOCK], MAX_TOKENS)[0]

    pooled = corpus.kind == "pooled"
    return ImageTextKeyFunction.fit(
        (corpus.features(block) for block in _blocks(rows)),
        ids() if uses_text else None,
        kind="pooled" if pooled else "attention",
        alpha=corpus.alpha,
        text_table=table if uses_text else None,
        image_projection=principal_directions(corpus.features, rows) if pooled else None,
    )


def principal_directions(
    features: Callable[[Sequence[int]], Tensor], rows: Sequence[int], width: int = IMAGE_WIDTH
) -> Tensor | None:
    """(D, width): the directions in which pooled features vary most; None where D is no more."""
    if not rows:
        return None
    blocks = [features(block).mean(dim=1) for block in _blocks(_thinned(rows, DIRECTIONS))]
    pooled = torch.cat(blocks).double().cpu()  # (N, D)
    if pooled.shape[1] <= width:
        return None
    centred = pooled - pooled.mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return directions[:, -width:].flip(1).float().contiguous()


def fit_aligned_to(corpus: KeyCorpus) -> AlignedKeyFunction:
    """Texts' semantic space and the cross-fitted maps into it."""
    rows = _thinned(range(len(corpus)), FITTED)
    pooled = torch.cat([corpus.features(block).mean(dim=1) for block in _blocks(rows)])
    texts, _ = encode_text(corpus.tokenizer, [corpus.texts[i] for i in rows], MAX_TOKENS)
    asked, _ = encode_text(corpus.tokenizer, [corpus.instructions[i] for i in rows], MAX_TOKENS)
    names = [corpus.image_hashes[i] for i in rows]
    return fit_aligned(pooled, texts, asked, names, corpus.tokenizer.get_vocab_size())


def fit_joint(corpus: KeyCorpus) -> JointKeyFunction:
    """The aligned maps, and the directions in which mean image features vary most beside them."""
    if not len(corpus):
        raise ConfigError("cannot fit a key function on no pairs: the corpus is empty")
    seen = _thinned(range(len(corpus)), DIRECTIONS)
    blocks = [pooled(corpus.features(block), torch.ones(2))[:, 0] for block in _blocks(seen)]
    sample = torch.cat(blocks)  # (N, 2 D)
    scales = torch.stack([half.std().clamp(min=1e-6) for half in sample.chunk(2, dim=1)])
    aligned = fit_aligned_to(
        replace(corpus, features=lambda rows: pooled(corpus.features(rows), scales))
    )
    found = principal_directions(corpus.features, range(len(corpus)))
    directions = torch.eye(aligned.image_width // 2) if found is None else found
    asks = any(corpus.instructions)
    return JointKeyFunction(aligned, scales, directions, corpus.alpha, asks)


IMAGE_TEXT = KeyMaker(fit_image_text, ImageTextKeyFunction.load)
ALIGNED = KeyMaker(fit_aligned_to, AlignedKeyFunction.load)
JOINT = KeyMaker(fit_joint, JointKeyFunction.load)
