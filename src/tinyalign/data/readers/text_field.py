"""What counts as text in a record: strings and numbers, and nothing at all where it is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyalign.errors import DataError


def text_of(value: Any, where: str) -> str:
    """A field as text; null is "", as a field that is missing.

    Raises DataError, which names the place `where`, for a list or an object.
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple, Mapping)):
        raise DataError(f"{where}: expected a text, found {value!r:.80}; write it as one string")
    return str(value)


def id_of(record: Mapping[str, Any], otherwise: str | int) -> str:
    """The id of a record, or what stands for it where it is missing or null."""
    found = record.get("id")
    return str(otherwise if found is None else found)
