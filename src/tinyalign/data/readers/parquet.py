"""Parquet files and Hugging Face data sets, with captions or question-answer pairs a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyalign.data.readers.captions import (
    caption_sample,
    check_choice,
    pick_caption,
    question_and_answer,
    question_sample,
)
from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.readers.text_field import id_of, text_of
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError, first_line
from tinyalign.vocabulary import CaptionChoice

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_COLUMNS = ("qa", "captions", "caption")


class TableDataset(LazySamples):
    """Samples of a table with `image` and `captions` (list), `caption` (text) or `qa` columns.

    `image` is `{bytes, path}` or a path; `qa` a list of `{question, answer}`; `id` is optional
    (the row number otherwise). Rows stay on disk, memory-mapped, until they are asked for.
    """

    def __init__(
        self,
        table: Dataset,
        *,
        source: str,
        image_folder: Path | None = None,
        captions: CaptionChoice = "first",
        prompt: str | None = None,
        seed: int = 0,
    ) -> None:
        check_choice(captions)
        self._table, self._text = _undecoded(table, source), _text_column(table, source)
        self._source, self._image_folder = source, image_folder
        self._choice, self._prompt, self._seed = captions, prompt, seed
        self._entries = self._index()

    def _index(self) -> list[tuple[int, int]]:
        """(row, which of its captions or questions; -1 for the one chosen) of each sample."""
        rows = range(len(self._table))
        if self._text == "caption" or (self._text == "captions" and self._choice != "all"):
            return [(row, -1) for row in rows]
        import pyarrow.compute as pc

        columns = self._table.select_columns([self._text]).with_format("arrow")[:]
        lengths = pc.list_value_length(columns[self._text]).to_pylist()
        return [(row, part) for row, n in zip(rows, lengths) for part in range(n or 0)]

    def __len__(self) -> int:
        return len(self._entries)

    def sample_at(self, index: int) -> Sample:
        """Entry `index`: an image, or one of its texts."""
        row, part = self._entries[index]
        record: dict[str, Any] = self._table[row]
        row_id = id_of(record, row)
        where = f"{self._source}, row {row} (id {row_id})"
        image = self._image(record["image"], where)
        if self._text == "qa":
            question, answer = question_and_answer(record["qa"][part], where)
            return question_sample(row_id, image, part, question, answer, source=self._source)
        value = record[self._text]
        found = value if isinstance(value, list) else [] if value is None else [value]
        texts = tuple(text_of(text, where) for text in found)
        return caption_sample(
            row_id,
            image,
            texts,
            pick_caption(row_id, len(texts), self._choice, self._seed) if part < 0 else part,
            numbered=part >= 0,
            prompt=self._prompt,
            source=self._source,
        )

    def _image(self, value: Any, where: str) -> ImageRef:
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict) and value.get("bytes") is not None:
            return ImageRef(path=value.get("path") or where, data=value["bytes"])
        if isinstance(value, dict) and value.get("path"):
            return ImageRef(path=str((self._image_folder or Path()) / value["path"]))
        raise DataError(f"{where}: expected 'image' with bytes or a path, found {value!r:.80}")


def read_parquet(files: Sequence[Path]) -> Dataset:
    """Parquet files as one memory-mapped data set (through the `datasets` cache)."""
    from datasets import Dataset

    with _no_bars():
        try:
            return Dataset.from_parquet([str(file) for file in files])
        except Exception as error:
            raise _unreadable(files, error) from error


def read_saved(folder: Path, split: str) -> Dataset:
    """A folder made by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder))
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise DataError(f"{folder}: expected a split {split!r}, found {sorted(saved)}")
    return saved[split]


def _unreadable(files: Sequence[Path], error: BaseException) -> DataError:
    """Which of the files can't be read, and why; or that they don't go together."""
    import pyarrow.parquet as pq

    schemas = []
    for file in files:
        try:
            schemas.append(pq.read_schema(file))
        except Exception as cause:
            return DataError(
                f"{file}: expected a complete parquet file, found one that can't be read "
                f"({first_line(cause)}); fetch or write it again"
            )
    while error.__cause__ is not None:
        error = error.__cause__
    names = ", ".join(str(file) for file in files[:3])
    if any(schema != schemas[0] for schema in schemas):
        return DataError(
            f"{names}: expected parquet files with the same columns, found different ones "
            f"({first_line(error)}); give those that go together as a glob"
        )
    return DataError(
        f"{names}: expected complete parquet files, found damaged rows ({first_line(error)}); "
        "fetch or write them again"
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            datasets.enable_progress_bars()


def _undecoded(table: Dataset, source: str) -> Dataset:
    from datasets import Image

    if "image" not in table.column_names:
        raise DataError(f"{source}: expected a column 'image', found {table.column_names}")
    if isinstance(table.features["image"], Image):
        return table.with_format(None).cast_column("image", Image(decode=False))
    return table.with_format(None)


def _text_column(table: Dataset, source: str) -> str:
    found = [name for name in TEXT_COLUMNS if name in table.column_names]
    if not found:
        raise DataError(
            f"{source}: expected one of the columns {TEXT_COLUMNS}, found {table.column_names}"
        )
    return found[0]
