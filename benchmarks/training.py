"""One training step of ours beside those of others: samples/s, memory, time waiting for data.

    python benchmarks/training.py [--nanovlm PATH] [--steps 5] [--rounds 1] [--pairs siglip ...]
    python benchmarks/training.py report

The same model pair, the same 2,000 photos of Flickr8k in the same order and the same trained parts
go through: ours with k = 0 and k = 5 (`train()` at the settings of the shipped recipe
smollm2-135m-efficientnet-flickr8k, warm caches); a straightforward loop in the style of LLaVA and
TinyLLaVA; nanoVLM's own loop (a checkout of huggingface/nanoVLM, given with --nanovlm); and the
release's way of retrieving inside `forward`. Then ours once more with one optimisation at a time
left out. Each runs in a process of its own with all cores, in turn, `--rounds` times; the first
steps are not timed. Caches, banks and tables are made first, and their time is stated apart.
Photos are read from ../shared/data/flickr8k. Writes results/training.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contenders.pairs import PAIRS, STAGES, Task
from contenders.report import report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORK = HERE.parent / "runs" / "training-benchmark"
KS = (0, 5)
RELEASE_BANKS = (2_000, 100_000)  # the samples here; the paper's bank
OURS = "ours"


@dataclass(frozen=True)
class Cell:
    """One contender on one pair in one stage: a process."""

    contender: str
    pair: str
    stage: str
    k: int = 0
    entries: int = 0
    """Of the release's bank."""
    without: str | None = None
    """The optimisation of ours that is left out."""

    @property
    def name(self) -> str:
        """What its numbers are kept under."""
        parts = [self.contender, self.pair, self.stage, f"k={self.k}"]
        parts += [f"entries={self.entries}"] * bool(self.entries)
        return " ".join([*parts, *([f"without={self.without}"] if self.without else [])])


def contenders(pair: str, stage: str, nanovlm: bool) -> list[Cell]:
    """Whatever trains this pair in this stage, ours first."""
    cells = [Cell(OURS, pair, stage, k) for k in KS]
    cells.append(Cell("padded", pair, stage))
    if nanovlm:
        cells.append(Cell("nanovlm", pair, stage))
    banks = RELEASE_BANKS if (pair, stage) == ("siglip", "pretrain") else RELEASE_BANKS[:1]
    return cells + [Cell("release", pair, stage, KS[-1], entries) for entries in banks]


def ablations(pair: str, stages: list[str]) -> list[Cell]:
    """Ours with one optimisation left out; those this version has, in the stages that are run."""
    from contenders.ablations import ABLATIONS

    return [
        Cell(OURS, pair, one.stage, one.k, without=name)
        for name, one in ABLATIONS.items()
        if one.available and one.stage in stages
    ]


# -- in a process of its own -------------------------------------------------------------------


def measure(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Time one cell in this process."""
    from contenders.clock import StepClock

    clock = StepClock(args.warmup, args.steps)
    task = task_of(cell.pair, cell.stage, cell.k, args)
    if cell.contender == OURS:
        from contenders import ours

        more = ours.run(clock, task, cell.without)
    elif cell.contender == "padded":
        from contenders import padded

        more = padded.run(clock, task)
    elif cell.contender == "release":
        from contenders import release

        more = release.run(clock, task, cell.entries)
    else:
        from contenders import nanovlm

        more = nanovlm.run(clock, task, args.nanovlm)
    return {**clock.summary(), **more}


def task_of(pair: str, stage: str, k: int, args: argparse.Namespace) -> Task:
    """What the contender is given."""
    return Task(PAIRS[pair], stage, k, args.work, args.batch_size, args.samples)


def in_child(job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any] | None:
    """Run a job in a new process with all cores; None, with the end of its log, if it failed."""
    out, log = args.work / "job.json", args.work / "job.log"
    out.unlink(missing_ok=True)
    shared = ["--steps", args.steps, "--warmup", args.warmup, "--batch-size", args.batch_size]
    shared += ["--work", args.work, "--samples", args.samples]
    shared += ["--nanovlm", args.nanovlm] if args.nanovlm else []
    command = [sys.executable, __file__, "job", "--job", json.dumps(job), *map(str, shared)]
    threads = {"OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
    with open(log, "w") as file:
        done = subprocess.run(command, env={**os.environ, **threads}, stdout=file, stderr=file)
    if done.returncode or not out.is_file():
        print(f"  failed: {job}\n{log.read_text()[-3000:]}", flush=True)
        return None
    return json.loads(out.read_text())


def job(args: argparse.Namespace) -> None:
    """What a child does: prepare a pair, or time a cell."""
    from tinyalign.log import setup_logging

    setup_logging()
    wanted = json.loads(args.job)
    if "prepare" in wanted:
        from contenders.preparing import prepare

        found = prepare(task_of(wanted["prepare"], STAGES[0], 0, args), KS)
    else:
        found = measure(Cell(**wanted), args)
    (args.work / "job.json").write_text(json.dumps(found))


# -- all of it ---------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """Prepare, then every cell in turn, round after round."""
    began = time.perf_counter()
    cells = [
        cell
        for stage in args.stages
        for pair in args.pairs
        for cell in contenders(pair, stage, args.nanovlm is not None)
    ]
    cells += [] if args.no_ablations else ablations(args.pairs[0], args.stages)
    found: dict[str, Any] = {"machine": this_machine(args), "cells": {}, "prepared": {}}
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.reuse:
        shutil.rmtree(args.work / "cache", ignore_errors=True)
        for path in args.work.glob("prepared-*.json"):
            path.unlink()
    for pair in args.pairs:
        found["prepared"][pair] = prepared(pair, args)
    for number in range(args.rounds):
        for cell in cells:
            started = time.perf_counter()
            result = in_child(asdict(cell), args)
            row = found["cells"].setdefault(cell.name, {**asdict(cell), "rounds": []})
            if result is not None:
                row["rounds"].append(result)
                rate, seconds = result["samples_per_s"], time.perf_counter() - started
                print(
                    f"{number + 1} {cell.name}: {rate:.2f} samples/s ({seconds:.0f} s)", flush=True
                )
            found["minutes"] = round((time.perf_counter() - began) / 60, 1)
            write(found, args)
    print((args.out / "training.md").read_text())
    print(f"{found['minutes']} minutes in all")


def prepared(pair: str, args: argparse.Namespace) -> dict[str, Any]:
    """Caches, banks and tables of a pair, made now or (with --reuse) before."""
    path = args.work / f"prepared-{pair}-{args.samples}-{args.batch_size}.json"
    if path.is_file():
        return json.loads(path.read_text())
    started = time.perf_counter()
    found = in_child({"prepare": pair}, args)
    if found is None:
        raise SystemExit(1)
    print(f"{pair}: prepared in {time.perf_counter() - started:.0f} s", flush=True)
    path.write_text(json.dumps(found))
    return found


def this_machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers were made on, and how."""
    import torch

    from flickr8k import machine

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    settings = {"steps": args.steps, "warmup": args.warmup, "batch_size": args.batch_size}
    settings["samples"] = args.samples
    load = round(os.getloadavg()[0], 1)
    return {
        **machine(), "threads": args.threads, "gpu": gpu, "load_average": load, **settings,
        "nanovlm": commit(args.nanovlm),
    }  # fmt: skip


def commit(checkout: Path | None) -> str | None:
    """Commit of a checkout, where git knows it."""
    if checkout is None:
        return None
    asked = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return asked.stdout.strip()[:10] or "unknown"


def write(found: dict[str, Any], args: argparse.Namespace) -> None:
    """training.json and training.md, as far as the run has come."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "training.md").write_text(report(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["run", "report", "job"], default="run")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--warmup", type=int, default=2, help="steps before these")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--samples", type=int, default=2000, help="photos of Flickr8k")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--nanovlm", type=Path, help="a checkout of huggingface/nanoVLM")
    parser.add_argument("--no-ablations", action="store_true")
    parser.add_argument("--reuse", action="store_true", help="keep what was prepared before")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "job":
        job(args)
    elif args.what == "report":
        found = json.loads((args.out / "training.json").read_text())
        (args.out / "training.md").write_text(report(found))
        print(report(found))
    else:
        run(args)


if __name__ == "__main__":
    main()
