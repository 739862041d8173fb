"""Start trainings in processes of their own, as launchers do, without their seconds of imports."""

from __future__ import annotations

import multiprocessing
import runpy
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tinyalign.training.recipe.files import save_recipe
from tinyalign.training.recipe.recipe import Recipe

HANGS = 300  # seconds after which a process is thought to hang
CHILD = str(Path(__file__).with_name("child.py"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(
    recipe: Recipe,
    *,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    dies: tuple[str, int] | None = None,
    who: int = 0,
) -> list[BaseProcess]:
    """Processes that train a recipe together; number `who` of them `dies`.

    The server that forks them has imported what they need and computed nothing yet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinyalign.training.run", "torch.distributed.fsdp"])
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, output / "asked.yaml")
    world: dict[str, str] = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if processes > 1:
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        world |= {"WORLD_SIZE": str(processes)}
        if "ACCELERATE_USE_DEEPSPEED" not in (environment or {}):
            world["ACCELERATE_USE_CPU"] = "1"
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        job: dict[str, Any] = {
            "recipe": str(output / "asked.yaml"),
            "environment": {**world, **own, **(environment or {})},
            "said": str(output / f"said-{rank}.txt"),
            "dies": dies if rank == who else None,
        }
        process = context.Process(target=runpy.run_path, args=(CHILD, {"job": job}))
        process.start()
        started.append(process)
    return started


def finished(started: list[BaseProcess]) -> list[int | None]:
    """The exit codes, once all have ended."""
    for process in started:
        process.join(HANGS)
        process.kill()
        process.join()
    return [process.exitcode for process in started]


def said(recipe: Recipe) -> str:
    """What the processes of a run wrote, for the message of a failing test."""
    files = sorted(Path(recipe.output).glob("said-*.txt"))
    return "\n".join(f"{path.name}: {path.read_text()}" for path in files)
