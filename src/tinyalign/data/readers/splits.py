"""Files named for splits, as the Hugging Face hub names them: `train-00000-of-00002.parquet`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinyalign.errors import DataError

SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")


def files_of_split(folder: str, files: Sequence[str], split: str) -> list[str]:
    """Of a folder's files those of `split`; all of them where none is named for a split.

    Raises:
        DataError: there are files of other splits only.
    """
    names = [re.split(r"[/\\]", file)[-1] for file in files]
    splits = [re.split(r"[-.]", name)[0] for name in names]
    if not set(splits) & set(SPLIT_NAMES):
        return list(files)
    found = [file for file, named in zip(files, splits) if named == split]
    if not found:
        raise DataError(
            f"{folder}: expected files of the split {split!r}, found {names[:8]}; "
            "choose another split or give a glob"
        )
    return found
