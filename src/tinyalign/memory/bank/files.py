"""Writing files so that a crash leaves either the old content or the new, never half of it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tinyalign.errors import BankError


def sync_file(path: str | os.PathLike[str]) -> None:
    """Push a closed file's content to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Push a folder's entries to the disk, where the platform can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(source: Path, target: Path) -> None:
    """Give `source` the name `target` in one step, after its content is on the disk."""
    sync_file(source)
    os.replace(source, target)
    sync_folder(target.parent)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a small file aside, push it to the disk, then rename it into place."""
    target = Path(path)
    aside = target.with_name(f"{target.name}.tmp")
    aside.write_bytes(content)
    replace_file(aside, target)


def common_mode(path: Path) -> None:
    """Give a file the rights that new files get in its folder, where a library gave it its own."""
    probe = path.with_name(f"{path.name}.mode")
    probe.touch()
    try:
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, and push it to the disk; it gets the rights of a new file.

    Raises BankError where `source` cannot be opened, OSError where `target` cannot be written.
    """
    check_readable(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as content, open(target, "wb") as file:
        shutil.copyfileobj(content, file)
    sync_file(target)


def check_readable(path: Path) -> None:
    """Raise BankError where a file cannot be opened, which some libraries call missing."""
    try:
        open(path, "rb").close()
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> BankError:
    """What to say of a file, or of one in a folder, that the system does not let us read."""
    return BankError(
        f"{error.filename or path}: cannot be read ({error.strerror or error}); get the right to "
        "read it, or restore it from a copy"
    )
