"""LLaVA conversations: a JSON list, or one JSON object a line, beside a folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyalign.data.readers.conversations import conversation_sample
from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.readers.text_field import id_of
from tinyalign.data.readers.text_file import read_text
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError

Read = dict[str, Any] | DataError
"""A record, or why a line holds none."""


class LlavaDataset(LazySamples):
    """Samples of a LLaVA file: `{"id", "image", "conversations": [{"from", "value"}]}`.

    The file is read at once, images are not.
    """

    def __init__(
        self, path: Path, image_folder: Path | None = None, *, keep_unreadable: bool = False
    ) -> None:
        """keep_unreadable: a broken record raises when it is asked for, not here."""
        self.path = path
        self.image_folder = path.parent if image_folder is None else image_folder
        self._records = read_records(path)
        broken = [record for record in self._records if isinstance(record, DataError)]
        if broken and (not keep_unreadable or len(broken) == len(self._records)):
            raise broken[0]

    def __len__(self) -> int:
        return len(self._records)

    def sample_at(self, index: int) -> Sample:
        """Record `index` of the file; raises DataError for one that is no conversation."""
        record = self._records[index]
        if isinstance(record, DataError):
            raise record
        where = f"{self.path}, record {index}"
        images = [self._image(name, where) for name in _names(record)]
        return conversation_sample(
            record.get("conversations"),
            images,
            id_of(record, index),
            source=self.path.name,
            where=where,
        )

    def _image(self, name: Any, where: str) -> ImageRef:
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: expected 'image' to be a file name, found {name!r}")
        return ImageRef(path=str(self.image_folder / name))


def read_records(path: Path) -> list[Read]:
    """The JSON objects of a `.json` list or of a file with one object a line.

    What is no object is an error in the list, which says its file and line or record.

    Raises:
        DataError: no UTF-8, or a list that is no JSON.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        records = _parse(text, str(path))
        return [_object(record, f"{path}, record {n}") for n, record in enumerate(records)]
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    lines = enumerate(text.split("\n"), start=1)
    return [_line(line, f"{path}, line {n}") for n, line in lines if line.strip()]


def _line(text: str, where: str) -> Read:
    try:
        return _object(_parse(text, where), where)
    except DataError as error:
        return error


def _object(record: Any, where: str) -> Read:
    if isinstance(record, dict):
        return record
    return DataError(f"{where}: expected an object, found {record!r:.80}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON, found something else ({error})") from error


def _names(record: dict[str, Any]) -> list[Any]:
    images = record.get("image", record.get("images"))
    if images is None:
        return []
    return images if isinstance(images, list) else [images]
