"""One image with its captions, or with its questions and answers -> samples.

Shared by the readers whose rows are like that.
"""

from __future__ import annotations

from typing import Any, get_args

from tinyalign.data.readers.text_field import text_of
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import DataError
from tinyalign.hashing import hash_bytes
from tinyalign.vocabulary import CaptionChoice


def check_choice(captions: str) -> None:
    """Raise `DataError` unless `captions` is a `CaptionChoice`."""
    if captions not in get_args(CaptionChoice):
        raise DataError(f"captions: expected one of {get_args(CaptionChoice)}, found {captions!r}")


def pick_caption(row_id: str, n: int, choice: CaptionChoice, seed: int) -> int:
    """Which of `n` captions stands for an image: by seed and id alone, so order is no matter."""
    if choice == "first" or n < 2:
        return 0
    return int(hash_bytes(f"{seed}|{row_id}".encode()), 16) % n


def caption_sample(
    row_id: str,
    image: ImageRef,
    captions: tuple[str, ...],
    index: int,
    *,
    numbered: bool,
    prompt: str | None,
    source: str,
) -> Sample:
    """A sample whose answer is caption `index`; with no captions at all it has no answer."""
    question = Message("user", prompt or "")
    answers = (Message("assistant", captions[index]),) if captions else ()
    return Sample(
        id=f"{row_id}#{index}" if numbered else row_id,
        images=(image,),
        messages=(question, *answers),
        source=source,
        references=captions,
    )


def question_and_answer(pair: Any, where: str) -> tuple[str, str]:
    """One of a row's `qa`; raises DataError, which names the place `where`, for other shapes."""
    if not isinstance(pair, dict) or not {"question", "answer"} <= pair.keys():
        raise DataError(
            f"{where}: expected 'qa' to be a list of question and answer, found {pair!r:.80}"
        )
    return text_of(pair["question"], where), text_of(pair["answer"], where)


def question_sample(
    row_id: str, image: ImageRef, index: int, question: str, answer: str, *, source: str
) -> Sample:
    """Question `index` about an image, with its answer."""
    return Sample(
        id=f"{row_id}#q{index}",
        images=(image,),
        messages=(Message("user", question.strip()), Message("assistant", answer.strip())),
        source=source,
        references=(answer.strip(),),
    )
