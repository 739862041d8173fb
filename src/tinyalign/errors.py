"""Errors for people: each message names what was wrong, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class TinyAlignError(Exception):
    """Base of every error that TinyAlign raises on purpose."""


class DataError(TinyAlignError):
    """A file, image or sample that cannot be used."""


class ModelError(TinyAlignError):
    """A model, backbone or processor that cannot be built or fed as asked."""


class BankError(TinyAlignError):
    """A memory bank that is missing, damaged, or made for another model."""


class ConfigError(TinyAlignError):
    """A setting that is out of range or does not go with another."""


class EvaluationError(TinyAlignError):
    """An evaluation that cannot be run or scored as asked."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_few(reasons: Iterable[str], most: int = 5) -> str:
    """The first few of many reasons in one line, and how many more there are."""
    listed = list(reasons)
    more = f"; and {len(listed) - most} more" if len(listed) > most else ""
    return "; ".join(listed[:most]) + more
