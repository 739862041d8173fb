"""How long the door takes: `import tinyalign` and every help page, and what each imports.

Each is a process of its own, run several times; the table has the median. Beside them stand what
nothing of ours can avoid: Python itself, and torch with transformers.

    python benchmarks/start.py                    # a minute or two; writes results/start.md
    python benchmarks/start.py --before CHECKOUT  # beside another checkout's, in the same run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tinyalign.cli.front.app import VERBS

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "start.md"
HEAVY = ("torch", "transformers", "numpy", "datasets", "pyarrow", "PIL")
LIGHT = ("jsonargparse", "yaml", "rich")
COUNT = """
import io, json, runpy, sys
from contextlib import redirect_stdout
sys.argv = ["tinyalign", *json.loads(sys.argv[1])]
with redirect_stdout(io.StringIO()):
    try:
        {what}
    except SystemExit:
        pass
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
print(len(sys.modules))
"""


def environment(checkout: Path) -> dict[str, str]:
    """With the code of a checkout first on the path."""
    return {**os.environ, "PYTHONPATH": str(checkout / "src")}


def seconds(words: list[str], checkout: Path, rounds: int) -> float:
    """Median wall time of a Python process, after one run that nobody counts."""
    found = []
    for turn in range(rounds + 1):
        started = time.perf_counter()
        command = [sys.executable, *words]
        subprocess.run(command, check=True, capture_output=True, env=environment(checkout))
        if turn:
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def imported(words: list[str], checkout: Path) -> tuple[list[str], int]:
    """(the packages of interest that a command imports, modules in all)."""
    what = "import tinyalign"
    if words:
        what = 'runpy.run_module("tinyalign", run_name="__main__")'
    code = COUNT.format(what=what)
    command = [sys.executable, "-c", code, json.dumps(words)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment(checkout)
    )
    names, count = done.stdout.splitlines()
    return [name for name in (*HEAVY, *LIGHT) if name in json.loads(names)], int(count)


def table(before: Path | None, rounds: int) -> list[str]:
    """A row a command."""
    here = HERE.parent
    heads = ["", "seconds", "modules", "of these"]
    if before is not None:
        heads[1:1] = ["seconds before", "ratio"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    rows: list[tuple[str, list[str], list[str] | None]] = [
        ("Python alone", ["-c", "pass"], None),
        ("`import torch, transformers`", ["-c", "import torch, transformers"], None),
        ("`import tinyalign`", ["-c", "import tinyalign"], []),
    ]
    for verb in ("", *VERBS):
        words = [*verb.split(), "--help"]
        rows.append((f"`tinyalign {' '.join(words)}`", ["-m", "tinyalign", *words], words))
    for name, command, words in rows:
        took = seconds(command, here, rounds)
        cells = [f"{took:.2f}"]
        if before is not None:
            then = took if words is None else _before(command, before, max(1, rounds // 3))
            cells = (
                ["-", "-", *cells] if then is None else [f"{then:.2f}", _ratio(then, took), *cells]
            )
        found, count = ([], 0) if words is None else imported(words, here)
        lines.append("| " + " | ".join([name, *cells, str(count or "-"), ", ".join(found)]) + " |")
        print(lines[-1], flush=True)
    return lines


def _before(command: list[str], before: Path, rounds: int) -> float | None:
    """Seconds of the other checkout; None for a verb that it does not have."""
    try:
        return seconds(command, before, rounds)
    except subprocess.CalledProcessError:
        return None


def _ratio(before: float, now: float) -> str:
    return f"{before / now:.1f} x"


def machine() -> str:
    """One line on what it ran on."""
    import torch
    import transformers

    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--before", type=Path, help="another checkout to time beside this one, a third as often"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs that count, of each command")
    args = parser.parse_args()
    lines = table(args.before, args.rounds)
    head = [
        "# A fast start",
        "",
        f"{machine()}. Median of {args.rounds} processes each, after one.",
        "",
    ]
    if args.before is not None:
        head[-1:] = ["", f"Of the other checkout {max(1, args.rounds // 3)} each, after one.", ""]
    OUT.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
