"""One record of a shard -> samples: conversations, questions and answers, or captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyalign.data.readers.captions import (
    caption_sample,
    check_choice,
    pick_caption,
    question_and_answer,
    question_sample,
)
from tinyalign.data.readers.conversations import conversation_sample
from tinyalign.data.readers.text_field import id_of, text_of
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError
from tinyalign.vocabulary import CaptionChoice

CAPTION_FIELDS = ("captions", "caption", "text", "txt")
TEXT_FIELDS = ("conversations", "qa", *CAPTION_FIELDS)


@dataclass(frozen=True)
class Reading:
    """How the records of a data set become samples; see `open_dataset` for the fields."""

    captions: CaptionChoice = "first"
    prompt: str | None = None
    seed: int = 0
    image_folder: str | None = None

    def __post_init__(self) -> None:
        check_choice(self.captions)

    def samples(
        self,
        fields: Mapping[str, Any],
        images: Sequence[ImageRef],
        *,
        row_id: str,
        source: str,
        where: str,
    ) -> list[Sample]:
        """The samples of one record: several where it has questions, or all captions are wanted.

        A field `id` wins over `row_id`. Raises DataError, which names the place `where`, for a
        record without text, or with captions or questions and no image.
        """
        name = id_of(fields, row_id)
        if fields.get("conversations") is not None:
            turns = fields["conversations"]
            return [conversation_sample(turns, images, name, source=source, where=where)]
        if not images:
            raise DataError(f"{where}: expected an image beside its text, found none")
        if fields.get("qa") is not None:
            return _questions(fields["qa"], images[0], name, source, where)
        found = next((fields[key] for key in CAPTION_FIELDS if fields.get(key) is not None), None)
        if found is None:
            raise DataError(f"{where}: expected one of {TEXT_FIELDS}, found {sorted(fields)}")
        texts = tuple(
            text_of(text, where) for text in (found if isinstance(found, list) else [found])
        )
        if self.captions == "all":
            chosen = list(range(len(texts)))
        else:
            chosen = [pick_caption(name, len(texts), self.captions, self.seed)]
        return [
            caption_sample(
                name, images[0], texts, index,
                numbered=self.captions == "all", prompt=self.prompt, source=source,
            )
            for index in chosen
        ]  # fmt: skip


def _questions(pairs: Any, image: ImageRef, name: str, source: str, where: str) -> list[Sample]:
    if not isinstance(pairs, list):
        raise DataError(
            f"{where}: expected 'qa' to be a list of question and answer, found {pairs!r:.80}"
        )
    texts = [question_and_answer(pair, where) for pair in pairs]
    return [
        question_sample(name, image, index, question, answer, source=source)
        for index, (question, answer) in enumerate(texts)
    ]
