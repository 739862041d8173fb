"""What verbs say on standard output: lines, tables, or one JSON value. Logs go to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # no help page needs a table
    from rich.table import Table


def say(line: str = "") -> None:
    """One line of text, as it is."""
    sys.stdout.write(line + "\n")


def say_json(value: Any) -> None:
    """One JSON value; paths become strings, numbers that are none become null."""
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False, indent=2) + "\n")


def say_table(table: Table) -> None:
    """A table, as wide as it needs where no terminal limits it."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=160)
    console.print(table)


def facts(rows: Iterable[tuple[str, Any]], title: str | None = None) -> Table:
    """A table of names and values."""
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, _text(value))
    return table


def columns(names: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A table with a head; columns of numbers stand on the right."""
    from rich.table import Table

    lines = [list(row) for row in rows]
    table = Table(title=title)
    for index, name in enumerate(names):
        numbers = bool(lines) and all(isinstance(line[index], int | float) for line in lines)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for line in lines:
        table.add_row(*(_text(value) for value in line))
    return table


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "n/a" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def size(n_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _text(value: Any) -> str:
    from rich.markup import escape

    return f"{value:.4f}" if isinstance(value, float) else escape(str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
