"""From the texts of a query's neighbours to tokens that its answer can be copied from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

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


class Copier:
    """Writes neighbours' answers as the model would write them: with its own tokens and end."""

    def __init__(
        self,
        processor: Any,
        gate: CopyGate,
        *,
        neighbours: int = NEIGHBOURS,
        temperature: float = 10.0,
    ) -> None:
        """neighbours: how many are copied from; temperature: each weighs exp(t x similarity)."""
        if neighbours < 1 or temperature < 0:
            raise ConfigError(
                "copying needs neighbours of at least 1 and a temperature of at least 0, found "
                f"{neighbours} and {temperature}"
            )
        self.processor, self.gate = processor, gate
        self.neighbours, self.temperature = neighbours, temperature
        self._ids = lru_cache(maxsize=1 << 17)(self._encoded)

    def __call__(self, neighbours: Sequence[Neighbourhood]) -> CopyTexts:
        """The texts of each query, as tensors on the CPU."""
        ids: list[list[list[int]]] = []
        shares: list[list[float]] = []
        for near in neighbours:
            ids.append([self._ids(text) for text in near.texts[: self.neighbours]])
            scores = torch.tensor(near.scores[: self.neighbours])
            shares.append(torch.softmax(self.temperature * scores, dim=0).tolist())
        nearest = [near.scores[0] if near.scores else 0.0 for near in neighbours]
        return copy_texts(ids, shares, nearest)

    def _encoded(self, answer: str) -> list[int]:
        """Ids of an answer and of what ends it, as they are supervised in training."""
        chat = [Message("user", ""), Message("assistant", answer)]
        own = self.processor.tokenizer, self.processor.chat_template
        made = encode(chat, *own, n_image_tokens=0)
        return [label for label in made.labels if label != IGNORED][:MOST_TOKENS]
