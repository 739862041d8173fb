"""The formats of data sets by name: ours, and those that other packages read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyalign.errors import DataError
from tinyalign.registry import Registry

if TYPE_CHECKING:
    from tinyalign.data.sample import Sample


@dataclass(frozen=True)
class Reader:
    """What reads a format."""

    open: Callable[..., Sequence[Sample]] | None
    """open(path, **options): the samples of a file or folder, images undecoded. `options` are
    those of `open_dataset`: image_folder, split, prompt, captions and seed. None for our own
    formats, which `open_dataset` reads itself."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of its files, such as ".xml", by which "auto" knows them."""


_OWN: dict[str, Any] = {
    "llava": Reader(None, (".json", ".jsonl")),
    "parquet": Reader(None, (".parquet",)),
    "csv": Reader(None, (".csv", ".tsv")),
    "webdataset": Reader(None, (".tar",)),
    "easy_vqa": Reader(None),
}
READERS: Registry[Reader] = Registry("format", "tinyalign.readers", _OWN, DataError)
"""Name to reader."""


def register_reader(
    name: str, open: Callable[..., Sequence[Sample]], suffixes: Sequence[str] = ()
) -> None:
    """Let `format` name a reader of your own, and "auto" find it by the suffixes of its files.

    open(path, *, image_folder, split, prompt, captions, seed) gives a sequence of
    `tinyalign.data.sample.Sample`, and raises DataError for what it cannot read.
    """
    READERS.register(name, Reader(open, tuple(suffix.lower() for suffix in suffixes)))


def check_format(name: str) -> str:
    """The name, if "auto" or a format's. Raises DataError otherwise, with those that there are."""
    return name if name == "auto" else READERS.check(name)


def format_of_suffix(suffix: str) -> str | None:
    """The format whose files end so; None where no reader claims them."""
    return next((name for name in READERS if suffix.lower() in READERS[name].suffixes), None)
