"""Caption tables as text: a header, then an image and a caption a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyalign.data.readers.captions import caption_sample, check_choice, pick_caption
from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.readers.text_file import read_text
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError
from tinyalign.vocabulary import CaptionChoice

IMAGE_COLUMNS = ("image", "file_name")
CAPTION_COLUMNS = ("caption", "text")


class CaptionCsvDataset(LazySamples):
    """Samples of a CSV (or tab-separated) file with columns `image` and `caption`.

    Lines with the same image are captions of one image. The sample's id is the image's name.
    """

    def __init__(
        self,
        path: Path,
        image_folder: Path | None = None,
        *,
        captions: CaptionChoice = "first",
        prompt: str | None = None,
        seed: int = 0,
        keep_unreadable: bool = False,
    ) -> None:
        """keep_unreadable: a broken line counts, behind the others, and raises when asked for."""
        check_choice(captions)
        self.path = path
        self.image_folder = path.parent if image_folder is None else image_folder
        self._choice, self._prompt, self._seed = captions, prompt, seed
        found, self._broken = read_captions(path)
        if self._broken and not keep_unreadable:
            raise self._broken[0]
        self._rows = list(found.items())
        self._entries = [
            (row, part)
            for row, (_, texts) in enumerate(self._rows)
            for part in (range(len(texts)) if captions == "all" else (-1,))
        ]

    def __len__(self) -> int:
        return len(self._entries) + len(self._broken)

    def sample_at(self, index: int) -> Sample:
        """Entry `index`: an image, or one of its texts; raises DataError for a broken line."""
        if index >= len(self._entries):
            raise self._broken[index - len(self._entries)]
        row, part = self._entries[index]
        name, texts = self._rows[row]
        return caption_sample(
            name,
            ImageRef(path=str(self.image_folder / name)),
            texts,
            pick_caption(name, len(texts), self._choice, self._seed) if part < 0 else part,
            numbered=part >= 0,
            prompt=self._prompt,
            source=self.path.name,
        )


def read_captions(path: Path) -> tuple[dict[str, tuple[str, ...]], list[DataError]]:
    """Captions by image, in the order of the file; and what is wrong with lines that lack a field.

    Raises:
        DataError: no UTF-8, or the header lacks a column.
    """
    text = read_text(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        fields = list(reader.fieldnames or ())
    except csv.Error as error:
        raise _no_csv(path, reader, error) from error
    image = _column(path, fields, IMAGE_COLUMNS)
    caption = _column(path, fields, CAPTION_COLUMNS)
    grouped: dict[str, list[str]] = {}
    broken: list[DataError] = []
    for row in _rows(path, reader):
        if isinstance(row, DataError):
            broken.append(row)
        elif problem := _problem(row, image, caption, len(fields)):
            broken.append(DataError(f"{path}, line {reader.line_num}: {problem}"))
        else:
            grouped.setdefault(row[image], []).append(row[caption].strip())
    return {name: tuple(texts) for name, texts in grouped.items()}, broken


def _problem(row: dict[Any, Any], image: str, caption: str, n_fields: int) -> str:
    """What is wrong with a row; "" if nothing is."""
    if None in row:  # where DictReader puts what no column is left for
        found = n_fields + len(row[None])
        return (
            f"expected {n_fields} fields, found {found}; put a caption with the delimiter in it "
            "into quotes"
        )
    if not row[image] or row[caption] is None:
        return f"expected an image and a caption, found {row!s:.120}"
    return ""


def _rows(path: Path, reader: csv.DictReader) -> Iterator[dict[str, str] | DataError]:
    """Rows, or why one can't be read as such."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _no_csv(path, reader, error)


def _no_csv(path: Path, reader: csv.DictReader, error: csv.Error) -> DataError:
    line = reader.line_num + 1  # the first that was not counted
    return DataError(f"{path}, line {line}: expected CSV, found what can't be read so ({error})")


def _column(path: Path, fields: list[str], names: tuple[str, ...]) -> str:
    found = [name for name in names if name in fields]
    if not found:
        raise DataError(
            f"{path}: expected a header with a column named one of {names}, "
            f"found {fields!s:.120}; name the columns, or another format"
        )
    return found[0]
