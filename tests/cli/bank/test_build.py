"""`tinyalign bank build` in two processes: killed, resumed, and the same bytes as by one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from accelerate import PartialState

from tinyalign.cli import main
from tinyalign.memory.building import builder
from tinyalign.memory.building import make_entries as maker

from ..conftest import make_pairs

BATCHES = 6  # of 4 pairs
HANGS = 300  # seconds after which a process is thought to hang


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def build(words: list[str], said: Path, world: dict[str, str], dies: bool) -> None:
    """One process of a build: it notes each batch that it makes; one that `dies` makes one."""
    os.environ |= world
    PartialState._reset_state()  # of the process it was forked from
    builder.CHECKPOINT_EVERY = 1
    store, made = maker.EntryMaker.store, []

    def counting(self, batch, writer):
        if dies and made:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(batch)
        store(self, batch, writer)

    maker.EntryMaker.store = counting
    with open(said.with_suffix(".out"), "w") as out, open(said.with_suffix(".err"), "w") as errors:
        sys.stdout, sys.stderr = out, errors
        code = main(words)
    said.with_suffix(".batches").write_text(str(len(made)))
    os._exit(code)


@contextmanager
def launched(words: list[str], said: Path, killed: int | None = None) -> Iterator[list]:
    """Two processes of one build, as a launcher starts them; `killed`: the one that dies."""
    fork = multiprocessing.get_context("fork")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world["ACCELERATE_USE_CPU"] = "1"
    processes = []
    for rank in range(2):
        own = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = (words, said / str(rank), own, rank == killed)
        processes.append(fork.Process(target=build, args=arguments))
        processes[-1].start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_killed_build_by_two_processes_ends_as_that_of_one(
    tmp_path: Path, tiny_vision_dir: Path
) -> None:
    pairs = make_pairs(tmp_path / "pairs", 4 * BATCHES)
    (pairs.parent / "5.png").unlink()  # skipped, and listed by whoever builds
    data = ["--data", str(pairs), "--vision", str(tiny_vision_dir), "--device", "cpu"]
    few = ["--min-steps", "1", "--max-steps", "1", "--vocab-size", "300", "--held-out", "0.2"]
    perceiver, one, two = (str(tmp_path / name) for name in ("compressor", "one", "two"))
    assert main(["perceiver", "train", *data, *few, "--out", perceiver]) == 0
    words = ["bank", "build", *data, "--perceiver", perceiver, "--batch-size", "4"]
    assert main([*words, "--no-cache", "--out", one]) == 0

    words += ["--workers", "1", "--json", "--out", two]
    with launched(words, tmp_path, killed=1) as (first, second):
        second.join(HANGS)
        assert second.exitcode == -signal.SIGKILL
        positions = wait_for_parts(tmp_path / "two" / "building", first)
    assert positions == [12, 4]
    assert not (tmp_path / "two" / "manifest.json").exists()

    with launched(words, tmp_path) as processes:
        for process in processes:
            process.join(HANGS)
        errors = [(tmp_path / f"{rank}.err").read_text() for rank in range(2)]
        assert [process.exitcode for process in processes] == [0, 0], errors
    made = [int((tmp_path / f"{rank}.batches").read_text()) for rank in range(2)]
    assert made == [0, 2]  # nothing that was finished
    report = json.loads((tmp_path / "0.out").read_text())
    assert [each["id"] for each in report["skipped"]] == ["pair-5"]
    assert (tmp_path / "1.out").read_text() == ""
    assert content(tmp_path / "two") == content(tmp_path / "one")


def wait_for_parts(building: Path, first: BaseProcess) -> list[int]:
    """How far both parts have come, once the first process has done its own or ended."""
    until = time.monotonic() + HANGS
    paths = [building / f"part-{rank}-of-2" / "progress.json" for rank in range(2)]
    while time.monotonic() < until and first.is_alive():
        if paths[0].is_file() and json.loads(paths[0].read_text())["position"] == 12:
            break
        time.sleep(0.05)
    return [json.loads(path.read_text())["position"] for path in paths]
