"""WebDataset tars: files whose names agree up to the first dot are one record."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tinyalign.data.readers.shards.file_shard import FileShard
from tinyalign.data.readers.shards.shard import Record, open_shard
from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
TEXT_SUFFIXES = ("txt", "caption", "text")
READ_SUFFIXES = (*IMAGE_SUFFIXES, *TEXT_SUFFIXES, "json")
NO_MORE = bytes(tarfile.BLOCKSIZE)


@dataclass
class _Parts:
    """The files of one record, read so far."""

    key: str
    at: int
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class TarShard(FileShard):
    """A tar of pairs: `KEY.jpg` beside `KEY.txt` (a caption) or `KEY.json`.

    The JSON has `caption`, `captions`, `qa` or `conversations`, and an `id` if it likes. A
    record's place is the byte that its first file's header begins at. What can't be read raises
    DataError, tarfile.TarError, EOFError or OSError: a tar that is cut off, also between two
    files, and one that is damaged.
    """

    def records(self, at: int = 0) -> Iterator[Record]:
        """Records from the byte `at` on."""
        parts: _Parts | None = None
        with open_shard(self.path) as file:
            file.seek(at)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    key, suffix = split_name(member.name)
                    if parts is None or parts.key != key:
                        if parts is not None:
                            yield self._record(parts)
                        parts = _Parts(key, member.offset)
                    if member.isfile() and suffix.split(".")[-1] in READ_SUFFIXES:
                        unread = self.text_only and is_image(suffix)
                        parts.files[suffix] = b"" if unread else _content(tar, member)
                    vars(tar)["members"].clear()  # tarfile would remember each
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != NO_MORE:  # nor may the last record be whole
                    raise DataError("it breaks off, or is damaged, before the end of the archive")
                if parts is not None:
                    yield self._record(parts)

    def _record(self, parts: _Parts) -> Record:
        where = f"{self.name}, {parts.key}"
        images = [
            ImageRef(path=f"{self.name}/{parts.key}.{suffix}", data=data)
            for suffix, data in parts.files.items()
            if is_image(suffix)
        ]
        if not parts.files:  # a folder, or files of other kinds
            return Record(parts.at, [])
        try:
            samples = self.reading.samples(
                _fields(parts.files, where),
                images,
                row_id=f"{self.name}/{parts.key}",
                source=self.source,
                where=where,
            )
        except DataError as error:
            return Record(parts.at, [], error)
        return Record(parts.at, samples)


def split_name(name: str) -> tuple[str, str]:
    """A file's name -> (key, suffix in lower case): `a.b/01.left.JPG` -> (`a.b/01`, `left.jpg`)."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else str(path), suffix.lower()


def is_image(suffix: str) -> bool:
    """Whether a file with this suffix is an image."""
    return suffix.split(".")[-1] in IMAGE_SUFFIXES


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name}: {len(data)} of {member.size} bytes")
    return data


def _fields(files: dict[str, bytes], where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for suffix, data in files.items():
        try:
            if suffix in TEXT_SUFFIXES:
                fields["txt"] = data.decode("utf-8-sig").strip()
            elif suffix == "json":
                found = json.loads(data)
                if not isinstance(found, dict):
                    raise DataError(f"{where}.json: expected an object, found {found!r:.80}")
                fields.update(found)
        except ValueError as error:
            raise DataError(f"{where}.{suffix}: can't be read ({error})") from error
    return fields
