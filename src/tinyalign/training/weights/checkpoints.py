"""Checkpoints of a stage: never half of one, whatever kills the process that writes it.

A checkpoint is written aside and renamed when every process has written its part, so a folder
that is called checkpoint-STEP is whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tinyalign.memory.bank.files import sync_file, sync_folder
from tinyalign.training.machine.launch import is_first, wait_for_all

ASIDE = "writing"
PREFIX = "checkpoint-"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=_step)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder; None without one."""
    return next(reversed(checkpoints(folder)), None)


def clear_aside(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed; every process calls this."""
    if is_first():
        shutil.rmtree(folder / ASIDE, ignore_errors=True)
    wait_for_all()


def publish(folder: Path, keep: int | None) -> None:
    """Give the checkpoint that lies aside its name, and remove all but the last `keep`.

    Every process calls this after it has written its part.
    """
    wait_for_all()
    if not is_first():
        return
    for written in checkpoints(folder / ASIDE):
        _sync(written)
        target = folder / written.name
        if target.exists():
            _remove(target)
        os.replace(written, target)
        sync_folder(folder)
    for old in checkpoints(folder)[:-keep] if keep else []:
        _remove(old)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[len(PREFIX) :])


def _remove(checkpoint: Path) -> None:
    """Take the name away first, so that no part of it is ever taken for a whole."""
    doomed = checkpoint.parent / ASIDE / f"old-{checkpoint.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    doomed.parent.mkdir(exist_ok=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
