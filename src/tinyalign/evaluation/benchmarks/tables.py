"""Parquet files and hub data sets as rows without images, and images by row number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyalign.data.readers.parquet import read_parquet
from tinyalign.data.sample import ImageRef
from tinyalign.errors import EvaluationError

if TYPE_CHECKING:
    from datasets import Dataset


class Table:
    """Rows of a data set; pictures stay encoded on disk until they are asked for."""

    def __init__(self, data: Dataset, source: str) -> None:
        from datasets import Image

        self.source = source
        self.columns = [n for n, f in data.features.items() if isinstance(f, Image)]
        for name in self.columns:
            data = data.cast_column(name, Image(decode=False))
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row without its pictures."""
        kept = [name for name in self._data.column_names if name not in self.columns]
        yield from self._data.select_columns(kept)

    def image(self, row: int, column: str = "image") -> ImageRef | None:
        """The picture of a row, encoded; None where it has none."""
        value = self._data[row].get(column)
        if value is None:
            return None
        name = f"{self.source}, row {row}" if not value.get("path") else value["path"]
        return ImageRef(path=name, data=value.get("bytes"))

    def has_image(self, column: str = "image") -> list[bool]:
        """For each row, whether it has a picture."""
        if column not in self.columns:
            return [False] * len(self)
        values = self._data.select_columns([column]).with_format("arrow")[:][column]
        return [bool(valid) for valid in values.is_valid().to_pylist()]


def is_table(source: str | Path) -> bool:
    """Whether a source is parquet files or a hub id rather than a benchmark's own files."""
    path = Path(source)
    if path.is_file():
        return path.suffix == ".parquet"
    if path.is_dir():
        return bool(_parquet_files(path))
    if path.parent.is_dir():  # `data/gqa` beside a folder data/ is a path with a slip in it
        return False
    return isinstance(source, str) and source.count("/") == 1


def open_table(source: str | Path, split: str, config: str | None = None) -> Table:
    """A parquet file, a folder of them, or a hub id, as a table.

    Files of a folder are those whose names start with `split`, if any do. On the hub, `config`
    names one configuration; without it, all that the data set has are laid end to end.
    """
    path = Path(source)
    if path.is_file() or path.is_dir():
        files = [path] if path.is_file() else _parquet_files(path)
        named = [file for file in files if file.name.startswith(split)] or files
        return Table(read_parquet(named), str(source))
    from datasets import concatenate_datasets, get_dataset_config_names, load_dataset

    try:
        names = get_dataset_config_names(str(source))
        kept = [config] if config in names else sorted(names)
        parts = [load_dataset(str(source), name, split=split) for name in kept]
    except Exception as error:
        raise EvaluationError(
            f"{source}: neither a file nor a folder here, and it could not be fetched as a "
            f"Hugging Face data set ({error}). Give the folder of the official files."
        ) from error
    return Table(concatenate_datasets(parts), str(source))


def _parquet_files(folder: Path) -> list[Path]:
    """In the folder, in `data/`, or in a folder for each configuration, as hub snapshots are."""
    return sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")])
