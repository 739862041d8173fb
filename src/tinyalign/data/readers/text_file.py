"""Text files, which are UTF-8 or refused with the place where they are not."""

from __future__ import annotations

from pathlib import Path

from tinyalign.errors import DataError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, its line ends as they are.

    Raises:
        DataError: bytes that are no UTF-8; the message says where, and how to convert the file.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Python counts from behind the byte order mark.
        at = error.start + (len(data) - len(error.object))
        raise DataError(
            f"{path}: expected UTF-8, found byte 0x{data[at]:02x} at offset {at}; convert it, "
            f"from Latin-1 for example: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from error
