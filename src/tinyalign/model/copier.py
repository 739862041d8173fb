"""From the texts of a query's neighbours to tokens that its answer can be copied from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from tinyalign.data.chat import encode
from tinyalign.data.collator import IGNORED
from tinyalign.data.sample import Message
from tinyalign.errors import ConfigError
from tinyalign.model.copying import CopyGate, CopyTexts, copy_texts
from tinyalign.model.protocols import Neighbourhood

NEIGHBOURS = 60
"""Neighbours that are copied from, where no number was chosen."""
MOST_TOKENS = 64
"""Tokens of a text that can be copied; the rest of a longer one is left out."""


Shares = Callable[[Sequence[str], Sequence[float]], Sequence[float]]
"""From texts and their similarities to how much each may say."""


class Copier:
    """Writes neighbours' answers as the model would write them: with its own tokens and end."""

    def __init__(
        self,
        processor: Any,
        gate: CopyGate,
        *,
        neighbours: int = NEIGHBOURS,
        shares: Shares | None = None,
    ) -> None:
        """neighbours: how many are copied from; shares: how much each may say, by default as much
        as any other."""
        if neighbours < 1:
            raise ConfigError(f"copying needs at least one neighbour, found {neighbours}")
        self.processor, self.gate = processor, gate
        self.neighbours, self.shares = neighbours, shares or _alike
        self._ids = lru_cache(maxsize=1 << 17)(self._encoded)

    def __call__(self, neighbours: Sequence[Neighbourhood]) -> CopyTexts:
        """The texts of each query, as tensors on the CPU."""
        ids: list[list[list[int]]] = []
        shares: list[list[float]] = []
        for near in neighbours:
            texts, scores = near.texts[: self.neighbours], near.scores[: self.neighbours]
            ids.append([self._ids(text) for text in texts])
            shares.append(list(self.shares(texts, scores)))
        nearest = [near.scores[0] if near.scores else 0.0 for near in neighbours]
        return copy_texts(ids, shares, nearest)

    def _encoded(self, answer: str) -> list[int]:
        """Ids of an answer and of what ends it, as they are supervised in training."""
        chat = [Message("user", ""), Message("assistant", answer)]
        own = self.processor.tokenizer, self.processor.chat_template
        made = encode(chat, *own, n_image_tokens=0)
        return [label for label in made.labels if label != IGNORED][:MOST_TOKENS]


def _alike(texts: Sequence[str], scores: Sequence[float]) -> list[float]:
    return [1.0 / len(texts) for _ in texts]
