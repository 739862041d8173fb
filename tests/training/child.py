"""One process of a training that is launched, or killed: run by path, see `launching.py`.

`job` holds: recipe (a file), environment, said (where its words go), and dies: None, or where and
how often it lives through that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die(*ignored: Any, **named: Any) -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def half(self: Any, path: str) -> None:
    """Write half of a Trainer's state, then die."""
    Path(path).write_text('{"global_step": 4, "epo')
    die()


def deadly(owner: Any, name: str, lives: int, deed: Callable[..., None] = die) -> None:
    """Let a function do `deed` instead of its work, once it was called `lives` times."""
    works, calls = getattr(owner, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return (deed if len(calls) > lives else works)(*args, **kwargs)

    setattr(owner, name, called)


def arm(where: str, lives: int) -> None:
    """Make this process die at a place: in a step, or somewhere in writing a checkpoint."""
    import torch
    from transformers import TrainerState

    from tinyalign.training.loop.trainer import TinyAlignTrainer
    from tinyalign.training.weights import checkpoints

    places = {
        "step": (TinyAlignTrainer, "compute_loss", die),
        "torch.save": (torch, "save", die),
        "state": (TrainerState, "save_to_json", half),
        "rename": (checkpoints, "_sync", die),
        "removal": (checkpoints.shutil, "rmtree", die),
    }
    owner, name, deed = places[where]
    deadly(owner, name, lives, deed)


def main(job: dict[str, Any]) -> None:
    """Train the job's recipe."""
    os.environ.update(job["environment"])
    sys.stdout = sys.stderr = Path(job["said"]).open("w", buffering=1)  # noqa: SIM115
    import torch

    torch.set_num_threads(1)
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train

    if job["dies"]:
        arm(*job["dies"])
    train(load_recipe(job["recipe"]))


main(globals()["job"])
