"""A parquet file read row group by row group, without a copy in a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tinyalign.data.readers.records import TEXT_FIELDS
from tinyalign.data.readers.shards.file_shard import FileShard
from tinyalign.data.readers.shards.shard import Record, open_shard
from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError

IMAGE_FIELDS = ("image", "images")
ROWS = 64  # decoded at a time


@dataclass(frozen=True)
class ParquetShard(FileShard):
    """Rows with an `image` (`{bytes, path}` or a path) or `images`, and a text as `Reading` has it.

    A record's place is its row. What can't be read raises DataError, OSError or pyarrow's errors.
    """

    def records(self, at: int = 0) -> Iterator[Record]:
        """Rows from row `at` on."""
        import pyarrow.parquet as pq

        with open_shard(self.path) as file, pq.ParquetFile(file) as table:
            known = ("id", *(() if self.text_only else IMAGE_FIELDS), *TEXT_FIELDS)
            columns = [name for name in table.schema_arrow.names if name in known]
            first = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if at < first + rows:
                    for row, record in _rows(table, group, columns, first):
                        if row >= at:
                            yield self._record(row, record)
                first += rows

    def _record(self, row: int, record: dict[str, Any]) -> Record:
        where = f"{self.name}, row {row}"
        try:
            found = [record.get("image"), *(record.get("images") or ())]
            found = [b""] if self.text_only else found
            images = [self._image(value, where) for value in found if value is not None]
            samples = self.reading.samples(
                record, images, row_id=f"{self.name}/{row}", source=self.source, where=where
            )
        except DataError as error:
            return Record(row, [], error)
        return Record(row, samples)

    def _image(self, value: Any, where: str) -> ImageRef:
        if isinstance(value, bytes):
            return ImageRef(path=where, data=value)
        if isinstance(value, dict) and value.get("bytes") is not None:
            return ImageRef(path=value.get("path") or where, data=value["bytes"])
        name = value.get("path") if isinstance(value, dict) else value
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: expected 'image' with bytes or a path, found {value!r:.80}")
        folder = self.reading.image_folder or self.path.rpartition("/")[0]
        return ImageRef(path=f"{folder}/{name}" if folder else name)


def _rows(
    table: Any, group: int, columns: list[str], first: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row in the file, its values) of one row group."""
    row = first
    for batch in table.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns):
        for record in batch.to_pylist():
            yield row, record
            row += 1
