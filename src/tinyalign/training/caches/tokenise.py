"""Samples to token ids and labels with the settings of one data set, and a name for these."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from tinyalign.data.chat import Encoded, encode
from tinyalign.data.collator import IGNORED
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError
from tinyalign.hashing import hash_json
from tinyalign.model.processing import TinyAlignProcessor


@dataclass(frozen=True)
class Tokeniser:
    """What decides the ids and labels of a sample, besides the sample."""

    tokenizer: Any
    template: str
    image_token_id: int
    memory_token_id: int
    n_image_tokens: int
    n_memory_tokens: int
    max_length: int | None

    @classmethod
    def of(
        cls,
        processor: TinyAlignProcessor,
        *,
        template: str | None = None,
        n_memory_tokens: int = 0,
        max_length: int | None = None,
    ) -> Tokeniser:
        """By a model's processor; template: by default the processor's own."""
        return cls(
            tokenizer=cast(Any, processor).tokenizer,
            template=template or cast(str, processor.chat_template),
            image_token_id=processor.image_token_id,
            memory_token_id=processor.memory_token_id,
            n_image_tokens=processor.image_seq_length,
            n_memory_tokens=n_memory_tokens,
            max_length=max_length,
        )

    def __call__(self, sample: Sample) -> Encoded:
        """Ids and labels; raises DataError for a sample that nothing can be learned from."""
        encoded = encode(
            sample,
            self.tokenizer,
            self.template,
            n_image_tokens=self.n_image_tokens,
            n_memory_tokens=self.n_memory_tokens,
            max_length=self.max_length,
        )
        answers = [message.text for message in sample.messages if message.role == "assistant"]
        if not any(answer.strip() for answer in answers):
            raise DataError(f"sample {sample.id}: expected an answer to learn from, found a blank")
        if all(label == IGNORED for label in encoded.labels):
            raise DataError(f"sample {sample.id}: no token to learn from within max_length")
        return encoded

    @property
    def hash(self) -> str:
        """Hash of tokenizer, template, placeholder counts and max_length."""
        return hash_json(
            [
                type(self.tokenizer).__name__,
                _rules(self.tokenizer),
                self.tokenizer.get_added_vocab(),
                self.tokenizer.all_special_tokens,
                self.template,
                [self.image_token_id, self.memory_token_id],
                [self.n_image_tokens, self.n_memory_tokens, self.max_length],
            ]
        )


def _rules(tokenizer: Any) -> dict[str, Any]:
    """How a tokenizer splits and numbers text, without what a call changes in passing."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    return {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
