"""Unfinished builds by another number of processes: refused, never thrown away unsaid."""

from __future__ import annotations

from pathlib import Path

from tinyalign.errors import BankError, first_few
from tinyalign.memory.building.writer import BUILDING, PROGRESS


def refuse_unfinished(folder: str | Path, processes: int = 1) -> None:
    """Raise BankError where `folder` has an unfinished build by other than so many processes.

    Several processes keep a part each, in FOLDER/building/part-I-of-N; one process has its files
    in FOLDER/building itself. Either build, once committed, would sweep away the other.
    """
    building = Path(folder) / BUILDING
    parts = sorted(path.name for path in building.glob("part-*-of-*"))
    own = [name for name in parts if name.endswith(f"-of-{processes}")]
    found = [name for name in parts if name not in own]
    if processes > 1 and not own and (building / PROGRESS).exists():
        found.append(PROGRESS)  # not of joining its own parts: there are none
    if found:
        counts = sorted({"1" if name == PROGRESS else name.rpartition("-")[2] for name in found})
        raise BankError(
            f"{building}: expected nothing of other builds, found an unfinished one of which the "
            f"number of processes is {' or '.join(counts)}, not {processes} ({first_few(found)}); "
            "finish it with its own command and as many processes, or remove "
            f"{building} to start over"
        )
