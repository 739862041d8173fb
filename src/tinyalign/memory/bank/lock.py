"""One writer at a time: the lock of a bank's folder, which the system frees when a process dies."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from tinyalign.errors import BankError
from tinyalign.log import logger

LOCK = "writer.lock"


class WriteLock:
    """Hold a bank's write lock. Readers neither take it nor wait for it."""

    def __init__(self, folder: str | Path, *, wait: bool = False) -> None:
        """wait: for another writer to finish; otherwise a second writer gets a BankError."""
        self.folder = Path(folder)
        self.wait = wait
        self._lock = FileLock(self.folder / LOCK)

    def __enter__(self) -> WriteLock:
        try:
            self._acquire()
        except Timeout as error:
            raise BankError(
                f"{self.folder}: another process is writing to this bank; wait until it is done. "
                "Reading goes on meanwhile"
            ) from error
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return self

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if not self.wait:
                raise
            logger.info("bank: another process is writing %s; waiting for it", self.folder)
            self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def cannot_write(folder: Path, error: OSError) -> BankError:
    """What to say when the disk is full or the folder read-only; what was committed stands."""
    return BankError(
        f"{folder}: cannot be written ({error.strerror or error}). What was committed before is "
        "untouched; make room or get the right to write there, then run the same command again"
    )
