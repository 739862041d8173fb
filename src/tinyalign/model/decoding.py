"""How an answer is found: greedily, with beams, or the best of several.

Re-ranking asks the model for several answers and takes the one that the neighbours' texts agree
with most: minimum Bayes risk with memories as the samples (Devlin et al. 2015 choose among
retrieved captions alone). It costs as many short generations more, from one reading of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyalign.errors import ConfigError
from tinyalign.model.protocols import MemoryBatch

Choose = Callable[[int, Sequence[str], MemoryBatch | None], int]
"""From a prompt's number, its possible answers, and what `generate` looked up for the batch, to
the best answer's place."""


@dataclass(frozen=True)
class Decoding:
    """Greedy by default."""

    max_new_tokens: int = 32
    beams: int = 1
    """Beams of a beam search; 1 is greedy."""
    best_of: int = 1
    """Answers to choose among: the greedy one or the beams, and samples besides."""
    temperature: float = 0.7
    """Of those samples."""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.best_of < 1:
            raise ConfigError(
                f"beams and best_of must be at least 1, found {self.beams} and {self.best_of}"
            )
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be positive, found {self.temperature}")

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        found: dict[str, Any] = {
            "do_sample": False,
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.best_of > 1:
            found |= {"best_of": self.best_of, "temperature": self.temperature}
        return found


def decode(
    model: Any, inputs: dict[str, Any], tokenizer: Any, decoding: Decoding, choose: Choose | None
) -> list[str]:
    """An answer for each prompt of `inputs`, as `generate` takes them.

    choose: which of several answers is the best; raises ConfigError where it is needed and None.
    """
    if decoding.best_of == 1:
        return _said(model, inputs, tokenizer, decoding, 1, num_beams=decoding.beams)[0]
    if choose is None:
        raise ConfigError("best_of chooses by what neighbours say: it needs a memory bank")
    beams = min(decoding.beams, decoding.best_of)
    first = _said(model, inputs, tokenizer, decoding, beams, num_beams=decoding.beams)
    looked_up = model.last_retrieval
    inputs = _with(inputs, looked_up, model.copier)
    rest = decoding.best_of - beams
    more = []
    if rest:
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0}
        more = _said(model, inputs, tokenizer, decoding, rest, **sampling)
    model.last_retrieval = looked_up
    found = list(zip(*first, *more))
    return [texts[choose(row, texts, looked_up)] for row, texts in enumerate(found)]


def _said(
    model: Any, inputs: dict[str, Any], tokenizer: Any, decoding: Decoding, each: int, **how: Any
) -> list[list[str]]:
    """`each` answers a prompt: a list of answers, one a prompt, for each of them."""
    output = model.generate(
        **inputs,
        **{"do_sample": False, **how},
        num_return_sequences=each,
        max_new_tokens=decoding.max_new_tokens,
    )
    new: Tensor = torch.as_tensor(output)[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return [texts[start::each] for start in range(each)]


def _with(inputs: dict[str, Any], found: MemoryBatch | None, copier: Any) -> dict[str, Any]:
    """The inputs with what the first answer had to look up, so that it is looked up once."""
    if found is None:
        return inputs
    known = {
        "memory_values": found.values,
        "memory_mask": found.mask,
        "memory_scores": found.scores,
    }
    if copier is not None and found.neighbours:
        known |= copier(found.neighbours).inputs()
    return {**inputs, **known}
