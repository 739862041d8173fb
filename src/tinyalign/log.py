"""One logger and one progress style for the whole package."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """What `progress` yields: go on by n, and say a few words beside the bar."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


logger = logging.getLogger("tinyalign")
TERMINAL = "tinyalign-terminal"


def setup_logging(level: int = logging.INFO, file: str | os.PathLike[str] | None = None) -> None:
    """Send the package's log to standard error, and to `file` as plain text if given.

    Libraries never call this; the command line does. Calling it again adds no second handler.
    """
    logger.setLevel(level)
    logger.propagate = False
    if not any(handler.name == TERMINAL for handler in logger.handlers):
        logger.addHandler(_terminal_handler())
    if file is not None:
        known = {getattr(handler, "baseFilename", None) for handler in logger.handlers}
        if os.path.abspath(file) not in known:
            handler = logging.FileHandler(file, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(handler)


def _terminal_handler() -> logging.Handler:
    """Rich on a terminal, plain lines where standard error goes to a file or a pipe."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=_console(), show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.set_name(TERMINAL)
    return handler


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
logger.addFilter(lambda record: record.levelno >= logging.WARNING or not _quiet.get())


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, and warnings alone in the log, for what this thread does many times over."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _bar_wanted() -> bool:
    if _quiet.get():
        return False
    if os.environ.get("RANK", "0") != "0":  # of processes launched together, the first shows it
        return False
    return sys.stderr.isatty() or os.environ.get("TINYALIGN_PROGRESS") == "1"


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar with rate and time left; yields `advance(n)`, or `advance(n, "loss 2.31")`.

    Silent where nobody is looking.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_console(), disable=not _bar_wanted(), transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance
