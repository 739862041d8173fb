"""What is learned from, in one shape whatever file it came from: `Sample`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `text` holds no image placeholder."""

    role: Role
    text: str


@dataclass(frozen=True)
class ImageRef:
    """An image that has not been decoded yet: encoded bytes, or else the file at `path`.

    With both, `data` is what is decoded and `path` is only its name.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.path is None and self.data is None:
            raise ValueError("an ImageRef needs a path or encoded bytes")

    @property
    def name(self) -> str:
        """What an error message calls this image."""
        if self.path is not None:
            return self.path
        return f"<{len(self.data or b'')} bytes in memory>"


@dataclass(frozen=True)
class Sample:
    """One conversation about zero or more images."""

    id: str
    images: tuple[ImageRef, ...]
    messages: tuple[Message, ...]
    source: str = ""
    """Which data set it came from: a file or package name."""
    references: tuple[str, ...] = ()
    """Every human caption, or every accepted answer, of this image or question; for evaluation."""
    category: str = ""
    """Kind of question, such as a benchmark's sub-task; evaluations break their numbers down by
    it."""
    image_tags: int = 0
    """How often the user's text, as it was written, said where an image goes; 0 if it did not."""

    @property
    def instruction(self) -> str:
        """X_I: the user's text up to the first assistant turn; "" for plain captions.

        The only text of a sample that a memory query may see: no answer is ever part of it.
        """
        asked = []
        for message in self.messages:
            if message.role == "assistant":
                break
            if message.role == "user":
                asked.append(message.text.strip())
        return "\n".join(text for text in asked if text)

    @property
    def answer(self) -> str:
        """The text of the last assistant turn; "" where there is none."""
        for message in reversed(self.messages):
            if message.role == "assistant":
                return message.text
        return ""

    @property
    def judged_by(self) -> tuple[str, ...]:
        """What is right for it: its references, or else its own answer."""
        return self.references or ((self.answer,) if self.answer else ())

    @property
    def text(self) -> str:
        """All user and assistant turns in one line of text: what a memory's value is made from."""
        turns = (message.text.strip() for message in self.messages if message.role != "system")
        return " ".join(turn for turn in turns if turn)
