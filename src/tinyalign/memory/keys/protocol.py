"""What a key function is, and all that it may see.

A key function turns an image's frozen features and the words of an instruction into a vector of
unit length. The same one makes an entry's key when a bank is built and a query when it is
searched. It never sees an answer when it makes a query, and its result depends neither on padding
nor on what else is in the batch: both are tested for ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tinyalign.vocabulary import KeyKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


class KeyFunction(Protocol):
    """Makes keys and queries (K_m of the paper) from frozen features and token ids."""

    @property
    def kind(self) -> str:
        """Its name in the registry; `key.json` in a saved folder holds it as "kind"."""

    @property
    def alpha(self) -> float:
        """The image's share of a key, as the manifest of a bank notes it."""

    @property
    def image_width(self) -> int:
        """D, the width of the vision features it takes."""

    @property
    def dim(self) -> int:
        """d_k, the length of a key."""

    @property
    def uses_text(self) -> bool:
        """Whether an instruction can change the key."""

    @property
    def uses_image(self) -> bool:
        """Whether an image can change the key."""

    @property
    def n_folds(self) -> int:
        """Folds of a cross-fit; 0 where queries of the fitting corpus are like any other."""

    @property
    def hash(self) -> str:
        """Content hash of settings and tensors. A bank refuses keys of another hash."""

    def keys(
        self,
        vision_features: Tensor | None,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
        folds: Sequence[int] | None = None,
    ) -> Tensor:
        """Queries (B, d_k), fp32, unit length, on the device of the input.

        vision_features (B, n, D) or None for a query by text alone; query_ids (B, L) ids of the
        instruction or None, padding 0; query_mask (B, L), by default all but id 0; folds: of
        images of the fitting corpus, the fold of each, so that its own text has no part.
        """

    def entry_keys(
        self, vision_features: Tensor | None, query_ids: Tensor, text_ids: Tensor
    ) -> Tensor:
        """Keys of entries (B, d_k), fp32, unit length; text_ids (B, L): of the whole text."""

    def save(self, folder: str | Path) -> None:
        """Write `key.json`, with "kind" and "hash" in it, and `key.safetensors`."""


@dataclass(frozen=True)
class KeyCorpus:
    """What a key function is fitted on: frozen features and words of pairs, and no model."""

    features: Callable[[Sequence[int]], Tensor]
    """Vision features (b, n, D) of the pairs at these numbers."""
    instructions: Sequence[str]
    texts: Sequence[str]
    """Whole texts, answers included."""
    image_hashes: Sequence[str]
    """Hexadecimal, one a pair."""
    tokenizer: Tokenizer
    """The Perceiver's."""
    kind: KeyKind = "pooled"
    """The name that was asked for: one fitting may serve several."""
    alpha: float = 0.4
    """The image's share, as the recipe has it."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class KeyMaker:
    """How key functions of a kind come about."""

    fit: Callable[[KeyCorpus], KeyFunction]
    load: Callable[[str | Path], KeyFunction]
    """Reads what `save` wrote; BankError names what is missing or damaged."""
