"""LLaVA conversations: a JSON list, or one JSON object a line, beside a folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyalign.data.readers.lazy import LazySamples
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


class LlavaDataset(LazySamples):
    """Samples of a LLaVA file: `{"id", "image", "conversations": [{"from", "value"}]}`.

    The image tag is taken out of the user's text (the images of a sample are `Sample.images`).
    The file is read at once, images are not.
    """

    def __init__(self, path: Path, image_folder: Path | None = None) -> None:
        self.path = path
        self.image_folder = path.parent if image_folder is None else image_folder
        self._records = read_records(path)

    def __len__(self) -> int:
        return len(self._records)

    def sample_at(self, index: int) -> Sample:
        """Record `index` of the file."""
        record = self._records[index]
        where = f"{self.path}, record {index}"
        turns = record.get("conversations")
        if not isinstance(turns, list):
            raise DataError(f"{where}: expected a list 'conversations', found {turns!r}")
        messages = tuple(message_of(turn, where) for turn in turns)
        answers = [message.text for message in messages if message.role == "assistant"]
        return Sample(
            id=str(record.get("id", index)),
            images=tuple(self._image(name, where) for name in _names(record)),
            messages=messages,
            source=self.path.name,
            references=tuple(answers[-1:]),
        )

    def _image(self, name: Any, where: str) -> ImageRef:
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: expected 'image' to be a file name, found {name!r}")
        return ImageRef(path=str(self.image_folder / name))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a `.json` list or of a file with one object a line.

    Raises:
        DataError: no JSON there; the message gives file and line.
    """
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        records = _parse(text, str(path))
    else:
        # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
        lines = enumerate(text.split("\n"), start=1)
        records = [_parse(line, f"{path}, line {n}") for n, line in lines if line.strip()]
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}, record {index}: expected an object, found {record!r:.80}")
    return records


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: expected JSON, found something else ({error})") from error


def _names(record: dict[str, Any]) -> list[Any]:
    images = record.get("image", record.get("images"))
    if images is None:
        return []
    return images if isinstance(images, list) else [images]


def message_of(turn: Any, where: str) -> Message:
    """One turn of a conversation; raises DataError that names the place `where`."""
    speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    if speaker not in ROLES:
        raise DataError(f"{where}: expected a turn from {sorted(ROLES)}, found {turn!r:.80}")
    role, text = ROLES[speaker], str(turn.get("value", turn.get("content", "")))
    if role == "user":
        text = text.replace(IMAGE_TAG, "").strip()
    return Message(role, text)
