"""What the shards of all kinds of files have in common."""

from __future__ import annotations

from dataclasses import dataclass

from tinyalign.data.readers.records import Reading


@dataclass(frozen=True)
class FileShard:
    """One file of records, and how its records become samples."""

    path: str
    name: str
    source: str
    reading: Reading
    remote: bool = False
    text_only: bool = False
    """Leave images empty, to count records without reading them."""
