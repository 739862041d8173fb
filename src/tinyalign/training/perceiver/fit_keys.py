"""Fitting the key function that a recipe names, on the pairs that its Perceiver is trained on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from tinyalign.data.sample import Sample
from tinyalign.memory.keys.protocol import KeyCorpus, KeyFunction
from tinyalign.memory.keys.registry import KEY_FUNCTIONS
from tinyalign.training.caches.features import Features
from tinyalign.vocabulary import KeyKind


def fit_key_function(
    samples: Sequence[Sample],
    features: Features,
    usable: Sequence[int],
    tokenizer: Tokenizer,
    kind: KeyKind,
    alpha: float,
) -> KeyFunction:
    """The key function `kind`, fitted on the pairs at the numbers `usable`.

    Raises ConfigError for a kind that nobody registered.
    """
    hashes = features.image_hashes()
    corpus = KeyCorpus(
        features=lambda rows: features.batch([usable[row] for row in rows]),
        instructions=[samples[i].instruction for i in usable],
        texts=[samples[i].text for i in usable],
        image_hashes=[hashes[i] for i in usable],
        tokenizer=tokenizer,
        kind=kind,
        alpha=alpha,
    )
    return KEY_FUNCTIONS[kind].fit(corpus)
