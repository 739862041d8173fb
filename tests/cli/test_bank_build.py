"""`tinyalign bank build` in two processes: killed, resumed, and the same bytes as by one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyalign.cli import main

from .conftest import make_pairs

BATCHES = 6  # of 4 pairs
HANGS = 900  # seconds after which a process is thought to hang
# One process of a build: it checkpoints after each batch, counts them, and may die on one.
PROCESS = """
import os, signal, sys
from tinyalign.cli import main
from tinyalign.memory import builder, maker

builder.CHECKPOINT_EVERY = 1
die_at, counted, store = int(sys.argv[1]), [0], maker.Maker.store

def counting(self, batch, writer):
    if counted[0] == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    counted[0] += 1
    store(self, batch, writer)

maker.Maker.store = counting
code = main(sys.argv[2:])
print(counted[0])
sys.exit(code)
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(words: list[str], die_at: tuple[int, int]) -> list[subprocess.Popen[str]]:
    """Two processes of one build, as a launcher starts them; -1: not to die."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(die_at[rank]), *words],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_killed_build_by_two_processes_ends_as_that_of_one(
    tmp_path: Path, tiny_vision_dir: Path
) -> None:
    pairs = make_pairs(tmp_path / "pairs", 4 * BATCHES)
    (pairs.parent / "5.png").unlink()  # skipped, and listed by whoever builds
    data = ["--data", str(pairs), "--vision", str(tiny_vision_dir), "--device", "cpu"]
    few = ["--min-steps", "1", "--max-steps", "1", "--vocab-size", "300", "--held-out", "0.2"]
    compressor, one, two = (str(tmp_path / name) for name in ("compressor", "one", "two"))
    cache = ["--cache-folder", str(tmp_path / "cache")]
    assert main(["compress", "train", *data, *few, *cache, "--out", compressor]) == 0
    build = ["bank", "build", *data, "--compressor", compressor, "--batch-size", "4"]
    assert main([*build, "--no-cache", "--out", one]) == 0

    words = [*build, "--workers", "1", "--json", "--out", two]
    first, second = launch(words, die_at=(-1, 1))
    assert second.wait(timeout=HANGS) == -signal.SIGKILL
    positions = wait_for_parts(tmp_path / "two" / "building", first)
    assert first.wait(timeout=HANGS) != 0
    assert not (tmp_path / "two" / "manifest.json").exists()

    processes = launch(words, die_at=(-1, -1))
    outputs = [process.communicate(timeout=HANGS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    redone = sum(int(out.split()[-1]) for out, _ in outputs)
    assert redone == BATCHES - sum(positions) // 4
    said = outputs[0][0]
    report = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert [each["id"] for each in report["skipped"]] == ["pair-5"]
    assert content(tmp_path / "two") == content(tmp_path / "one")


def wait_for_parts(building: Path, first: subprocess.Popen[str]) -> list[int]:
    """Kill the first process once its own part is done; how far both parts have come."""
    until = time.monotonic() + HANGS
    part = building / "part-0-of-2" / "progress.json"
    while time.monotonic() < until and first.poll() is None:
        if part.is_file() and json.loads(part.read_text())["position"] == 12:
            first.kill()
        time.sleep(0.1)
    names = [building / f"part-{rank}-of-2" / "progress.json" for rank in range(2)]
    return [json.loads(path.read_text())["position"] for path in names]
