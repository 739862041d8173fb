"""Kill writers of a memory bank at random, and at every step, and look at what is left.

    python benchmarks/kill_bank.py --kills 500 --out benchmarks/results/kill_bank.json

A writer is forked that adds, removes, updates and compacts without end, saying before each commit
what it is about to do and after it that it is done. It gets SIGKILL at a random moment. The bank
must then open at the last commit that the writer vouched for, or at the one it was in the middle
of; every byte must verify; every entry must have the key and the value that belong to its text;
a reader that was open all along must hide what was removed; and the next writer must work. The
tests run the same a few times over.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.bank.manifest import Manifest
from tinyalign.memory.building.editor import BankEditor, compact
from tinyalign.memory.building.writer import BankWriter

MANIFEST = Manifest("made", "v", "c", "k", "pooled", 0.4, 16, 4, 8, "d", "float16", "int8")
IDS = 150  # names that entries take turns to have
STEPS = {
    "close", "connect", "execute", "executemany", "flush", "fsync", "mkdir", "open", "remove",
    "rename", "replace", "rmdir", "truncate", "unlink", "write",
}  # fmt: skip


def entry(serial: int) -> Entry:
    """The entry of a serial number; names come again, texts never."""
    return Entry(f"s{serial % IDS}", f"text {serial}", "", f"hash {serial % 9}", "made", "")


def key(serial: int) -> np.ndarray:
    """The key (16) that belongs to a serial number, of unit length."""
    vector = np.random.default_rng(serial).standard_normal(MANIFEST.key_dim, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def value(serial: int) -> np.ndarray:
    """The value (4, 8) that belongs to a serial number."""
    shape = (MANIFEST.n_latents, MANIFEST.d_latents)
    return np.random.default_rng(serial + 10**9).standard_normal(shape, dtype=np.float32)


def rows_for(serials: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[Entry]]:
    """Keys, values and entries as `append` takes them."""
    arrays = (np.stack([make(one) for one in serials]) for make in (key, value))
    keys, values = map(torch.from_numpy, arrays)
    return keys, values, [entry(one) for one in serials]


def make_bank(folder: Path, count: int) -> dict[str, int]:
    """A bank of the first serial numbers; id → serial number."""
    writer = BankWriter(folder, "made", MANIFEST.key_coding, MANIFEST.value_coding)
    writer.append(*rows_for(list(range(count))))
    (writer.building / "compressor").mkdir()
    (writer.building / "compressor" / "key.json").write_text("{}")
    writer.commit(MANIFEST)
    return {entry(one).id: one for one in range(count)}


def wrong_rows(bank: MemoryBank, rows: np.ndarray) -> list[int]:
    """Rows whose key or value is not the one that belongs to their entry."""
    entries = bank.entries.at(rows.tolist())
    wrong = []
    for row in rows.tolist():
        serial = int(entries[row].text.split()[1])
        keys = bank.manifest.key_coding.encode(key(serial))
        records = bank.coding.encode(value(serial)[None])[0]
        right = entries[row] == entry(serial) and bank.records[row] == records
        if not (right and (bank.keys[row] == keys).all()):
            wrong.append(row)
    return wrong


def contents(bank: MemoryBank) -> dict[str, int]:
    """Id → serial number of the entries in a bank, every byte and every row checked."""
    bank.verify()
    live = bank.live
    if wrong := wrong_rows(bank, live):
        raise AssertionError(f"rows {wrong} have another's key or value")
    entries = bank.entries.at(live.tolist()).values()
    found = {one.id: int(one.text.split()[1]) for one in entries}
    if len(found) != len(bank):
        raise AssertionError("an id is there twice")
    return found


def changes(
    folder: Path, seed: int, serial: int, say: Callable[[dict], None], gap: float = 0.0
) -> Iterator[int]:
    """Change a bank at random, one commit an iteration; gives the next serial number.

    say: told what a commit will do, and that it is done.
    """
    rng = np.random.default_rng(seed)
    while True:
        if rng.random() < 0.15:
            say({"compact": True})
            compact(folder)
            say({"done": True})
            yield serial
        with BankEditor(folder) as editor:
            for _ in range(int(rng.integers(1, 4))):
                live = editor.bank.live
                some = rng.permutation(live)[: rng.integers(0, 12 if len(live) < 100 else 60)]
                gone = [one.id for one in editor.bank.entries.at(some.tolist()).values()]
                editor.remove(some)
                last = serial + int(rng.integers(0, 25))
                new = [one for one in range(serial, last) if entry(one).id not in editor.ids]
                if new:
                    editor.append(*rows_for(new))
                serial = last
                say({"gone": gone, "new": new})
                editor.commit("a change")
                say({"done": True})
                time.sleep(gap)
                yield serial


@dataclass
class Told:
    """What a writer said before it was killed."""

    sure: dict[str, int]
    """Id → serial number as of the last commit that it vouched for."""
    maybe: dict[str, int]
    """The same as of the commit that it was in the middle of."""
    commits: int = 0
    """Commits it vouched for."""

    @classmethod
    def of(cls, before: dict[str, int], lines: list[str]) -> Told:
        """lines: of JSON; the last one may be cut."""
        told = cls(before, before)
        for line in lines:
            said = json.loads(line)
            if "done" in said:
                told.sure = told.maybe
                told.commits += 1
            else:
                left = {k: v for k, v in told.sure.items() if k not in said.get("gone", ())}
                told.maybe = left | {entry(one).id: one for one in said.get("new", ())}
        return told


@dataclass
class Tally:
    """What came of many kills."""

    kills: int = 0
    commits: int = 0
    """Commits that writers vouched for."""
    kept: int = 0
    """Kills after which the bank stood at a commit that the writer was in the middle of."""
    in_commit: int = 0
    """Kills in the middle of a commit."""
    compactions: int = 0
    faults: list[str] = field(default_factory=list)
    """What was wrong; empty is what we want."""


def fork_writer(folder: Path, seed: int, serial: int) -> tuple[int, int]:
    """A writer in a process of its own: (its id, where to read what it says)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)

        def say(what: dict) -> None:
            os.write(writing, json.dumps(what).encode() + b"\n")

        for _ in changes(folder, seed, serial, say):
            pass
    except BaseException as error:  # whatever it is, the parent wants to know
        os.write(writing, json.dumps({"error": repr(error)}).encode() + b"\n")
    finally:
        os._exit(1)
    raise AssertionError("unreachable")


def kill_once(folder: Path, seed: int, serial: int, longest: float) -> list[str]:
    """Let a writer loose and kill it within `longest` seconds; what it said."""
    rng = np.random.default_rng([seed, 1])
    pid, reading = fork_writer(folder, seed, serial)
    said = os.read(reading, 1)  # its first word: the writer is at work
    time.sleep(rng.uniform(0, longest))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reading, 1 << 16):
        said += more
    os.close(reading)
    lines = said.decode().split("\n")
    return [line for line in lines[:-1] if line]


def kill_many(
    folder: Path, kills: int, seed: int = 0, longest: float = 0.15,
    seen: Callable[[Tally], None] = lambda tally: None,
) -> Tally:  # fmt: skip
    """Kill writer after writer of one bank. seen: called after each kill."""
    tally, before = Tally(), make_bank(folder, 60)
    serial, reader = 60, MemoryBank.open(folder)
    for number in range(kills):
        lines = kill_once(folder, seed * 10**6 + number, serial, longest)
        errors = [line for line in lines if "error" in json.loads(line)]
        if errors:
            tally.faults.append(f"kill {number}: the writer failed: {errors[0]}")
            return tally
        told = Told.of(before, lines)
        serial = max([serial, *(1 + n for line in lines for n in json.loads(line).get("new", ()))])
        before = _found(folder, reader, told, tally, number)
        tally.kills += 1
        tally.commits += told.commits
        tally.in_commit += "done" not in json.loads(lines[-1])
        tally.compactions += sum("compact" in json.loads(line) for line in lines)
        if number % 5 == 4:
            reader.refresh()
        seen(tally)
        if tally.faults:
            return tally
    return tally


def _found(
    folder: Path, reader: MemoryBank, told: Told, tally: Tally, number: int
) -> dict[str, int]:
    """What the bank holds after a kill; what is wrong with it goes into the tally."""
    try:
        found = contents(MemoryBank.open(folder))
        if found not in (told.sure, told.maybe):
            tally.faults.append(f"kill {number}: the bank is at no commit that it should be at")
        tally.kept += found == told.maybe != told.sure
        shown = {one.text for one in reader.entries.at(reader.live.tolist()).values()}
        if stale := shown - {entry(one).text for one in found.values()}:
            tally.faults.append(
                f"kill {number}: an open reader of commit {reader.manifest.commit} shows "
                f"{sorted(stale)}, removed by commit {MemoryBank.open(folder).manifest.commit}"
            )
        if wrong := wrong_rows(reader, reader.live):
            tally.faults.append(f"kill {number}: an open reader mixes up rows {wrong}")
    except Exception as error:
        tally.faults.append(f"kill {number}: {error!r}")
        found = {}
    return found


def die_at(step: int, names: set[str] | None = None) -> None:
    """Have this process die just before its step-th call of a C function, counted from 0.

    names: of the functions that count; None counts every one.
    """
    left = step

    def profile(frame: object, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and (names is None or getattr(function, "__name__", "") in names):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.setprofile(profile)


def killed_at(step: int, work: Callable[[], object], names: set[str] | None = None) -> bool:
    """Do work in a process that dies before the step-th call; whether it came so far."""
    pid = os.fork()
    if not pid:
        try:
            die_at(step, names)
            work()
            sys.setprofile(None)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError(f"the work failed before step {step}")
    return os.WIFSIGNALED(status)


def main() -> None:
    """Kill at random, as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds a writer lives")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the bank")
    parser.add_argument("--out", type=Path, help="a JSON file for the count")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()

    def seen(tally: Tally) -> None:
        if tally.kills % 50 == 0:
            print(f"{tally.kills} kills, {tally.commits} commits", flush=True)

    tally = kill_many(options.folder, options.kills, options.seed, options.longest, seen)
    report = vars(tally) | {"seconds": round(time.monotonic() - start)}
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
