"""Find a benchmark's files where its official download puts them."""

from __future__ import annotations

from pathlib import Path

from tinyalign.errors import EvaluationError


def file_of(source: str | Path, *patterns: str) -> Path:
    """The source itself when it is a file, else the first file in it that fits a pattern."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise EvaluationError(f"{path}: expected a file or a folder, found none; check the path.")
    for pattern in patterns:
        found = sorted(p for p in path.rglob(pattern) if p.is_file())
        if len(found) > 1 and "*" in pattern:
            names = ", ".join(p.name for p in found[:4])
            raise EvaluationError(
                f"{path}: {len(found)} files fit {pattern} ({names}); name the one you mean."
            )
        if found:
            return found[0]
    raise EvaluationError(
        f"{path}: expected {' or '.join(patterns)} in this folder, found neither."
    )


def beside(file: Path, *patterns: str) -> Path | None:
    """The first file in the same folder that fits a pattern, if any."""
    for pattern in patterns:
        found = sorted(p for p in file.parent.glob(pattern) if p.is_file())
        if found:
            return found[0]
    return None


def folder_of(images: str | Path | None, file: Path, *names: str) -> Path:
    """The folder of pictures: as given, or the first of `names` beside a file, or its own."""
    if images is not None:
        return Path(images)
    for name in names:
        if (file.parent / name).is_dir():
            return file.parent / name
    return file.parent
