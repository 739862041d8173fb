"""Conversations as LLaVA writes them, `[{"from", "value"}]` -> samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyalign.data.readers.text_field import text_of
from tinyalign.data.sample import ImageRef, Message, Role, Sample
from tinyalign.errors import DataError

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
IMAGE_TAG = "<image>"


def conversation_sample(
    turns: Any, images: Sequence[ImageRef], name: str, *, source: str, where: str
) -> Sample:
    """A sample of the turns; raises DataError, which names the place `where`, for other shapes.

    The image tag is taken out of the user's text, and counted in `Sample.image_tags`.
    """
    if not isinstance(turns, list):
        raise DataError(f"{where}: expected a list 'conversations', found {turns!r:.80}")
    written = [_message(turn, where) for turn in turns]
    answers = [message.text for message in written if message.role == "assistant"]
    return Sample(
        name,
        tuple(images),
        tuple(_without_tags(message) for message in written),
        source=source,
        references=tuple(answers[-1:]),
        image_tags=sum(one.text.count(IMAGE_TAG) for one in written if one.role == "user"),
    )


def _message(turn: Any, where: str) -> Message:
    speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(f"{where}: expected a turn from {sorted(ROLES)}, found {turn!r:.80}")
    text = turn.get("value")
    return Message(ROLES[speaker], text_of(turn.get("content") if text is None else text, where))


def _without_tags(message: Message) -> Message:
    if message.role != "user":
        return message
    return Message("user", message.text.replace(IMAGE_TAG, "").strip())
