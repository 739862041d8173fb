"""Caption tables as text: a header, then an image and a caption a line."""

from __future__ import annotations

import csv
from pathlib import Path

from tinyalign.data.readers.captions import (
    CaptionChoice,
    caption_sample,
    check_choice,
    pick_caption,
)
from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError

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
    ) -> None:
        check_choice(captions)
        self.path = path
        self.image_folder = path.parent if image_folder is None else image_folder
        self._choice, self._prompt, self._seed = captions, prompt, seed
        self._rows = list(read_captions(path).items())
        self._entries = [
            (row, part)
            for row, (_, texts) in enumerate(self._rows)
            for part in (range(len(texts)) if captions == "all" else (-1,))
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def sample_at(self, index: int) -> Sample:
        """Entry `index`: an image, or one of its texts."""
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


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Captions by image, in the order of the file.

    Raises:
        DataError: the header lacks a column, or a line lacks a field.
    """
    grouped: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter="\t" if "\t" in header else ",")
        fields = list(reader.fieldnames or ())
        image = _column(path, fields, IMAGE_COLUMNS)
        caption = _column(path, fields, CAPTION_COLUMNS)
        for row in reader:
            if not row[image] or row[caption] is None:
                raise DataError(
                    f"{path}, line {reader.line_num}: expected an image and a caption, "
                    f"found {row!r:.120}"
                )
            grouped.setdefault(row[image], []).append(row[caption].strip())
    return {name: tuple(texts) for name, texts in grouped.items()}


def _column(path: Path, fields: list[str], names: tuple[str, ...]) -> str:
    found = [name for name in names if name in fields]
    if not found:
        raise DataError(f"{path}: expected a column named one of {names}, found {fields}")
    return found[0]
