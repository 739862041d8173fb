"""The bank under kills, power cuts, full disks, damage and company.

The same at length: TINYALIGN_LONG_TESTS=1 pytest tests/memory/test_durability.py, and
benchmarks/kill_bank.py for kills at random.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.lock import WriteLock
from tinyalign.memory.building.changes import merge_banks
from tinyalign.memory.building.editor import BankEditor, compact
from tinyalign.memory.building.parquet import export_bank
from tinyalign.memory.building.writer import finish_commit

LONG = bool(os.environ.get("TINYALIGN_LONG_TESTS"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork"),
]


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of forty entries in three segments, a few of them removed. Copy it to change it."""
    folder = tmp_path_factory.mktemp("whole") / "bank"
    made.make_bank(folder, 30)
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for(list(range(30, 38))))
        editor.remove([3, 4])
        editor.commit("eight more, two fewer")
        editor.append(*made.rows_for([38, 39]))
        editor.commit("two more")
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same, to change or damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def put(folder: Path, content: dict[str, bytes]) -> Path:
    """A folder with just these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def refusal(work: Callable[[], object]) -> str:
    """The BankError that work ends with; "" for none."""
    try:
        work()
    except BankError as error:
        return str(error)
    return ""


def in_a_child(work: Callable[[], object]) -> str:
    """Do work in a forked process; the error it ended with, "" for none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if error := refusal(work):
                os.write(writing, f"BankError: {error}".encode())
        except BaseException as error:
            os.write(writing, f"not a BankError: {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


# -- what a writer does ---------------------------------------------------------------------------


def add(made, folder: Path) -> None:
    """A commit that merges the two newest segments."""
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for(list(range(40, 51))))
        editor.commit("eleven more")


def remove(made, folder: Path) -> None:
    with BankEditor(folder) as editor:
        editor.remove([0, 7, 31])
        editor.commit("three fewer")


def squeeze(made, folder: Path) -> None:
    compact(folder)


def merge(made, folder: Path) -> None:
    merge_banks([folder], folder.with_name("merged"))


def export(made, folder: Path) -> None:
    export_bank(MemoryBank.open(folder), folder.with_name("exported"))


WORKS = [add, remove, squeeze]


def check_after(made, folder: Path, before: dict, after: dict, where: str) -> bool:
    """The bank is as before or as after, and can be written. Whether it is as after."""
    found = made.contents(MemoryBank.open(folder))
    assert found in (before, after), where
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for([149]))
        editor.commit("the next writer")
    assert made.contents(MemoryBank.open(folder)) == found | {"s149": 149}, where
    named = {*MemoryBank.open(folder).manifest.sizes, "manifest.json", "writer.lock"}
    assert set(files(folder)) == named, where
    return found == after


@pytest.fixture(params=WORKS, ids=lambda work: work.__name__)
def work(request, made, whole: Path, tmp_path: Path):
    """(what to do, contents before, contents after)."""
    done = Path(shutil.copytree(whole, tmp_path / "done"))
    request.param(made, done)
    contents = [made.contents(MemoryBank.open(folder)) for folder in (whole, done)]
    return request.param, *contents


# -- kills ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_writers_killed_at_random_lose_nothing(made, tmp_path: Path) -> None:
    tally = made.kill_many(tmp_path / "bank", 500 if LONG else 20, longest=0.2)
    assert tally.faults == []
    assert tally.commits + tally.in_commit > 0


def test_a_kill_before_any_call_leaves_a_whole_bank(
    made, work, whole: Path, tmp_path: Path
) -> None:
    """Die before the n-th call that touches the disk; at length, before every call of C at all."""
    do, before, after = work
    names, every = (None, 1) if LONG else (made.STEPS, 7)
    step, committed = 0, []
    while True:
        folder = Path(shutil.copytree(whole, tmp_path / "bank"))
        killed = made.killed_at(step, lambda: do(made, folder), names)  # noqa: B023
        if before != after or not killed:
            committed.append(check_after(made, folder, before, after, f"before call {step}"))
        else:
            check_after(made, folder, before, after, f"before call {step}")
        shutil.rmtree(folder)
        if not killed:
            break
        step += every
    assert step > 20
    assert committed == sorted(committed)  # once committed, always committed
    assert committed[-1]


def test_a_killed_first_commit_is_completed(made, tmp_path: Path) -> None:
    """Die before the n-th call while a finished build is moved into place."""
    every = 1 if LONG else 3
    for step in range(0, 10_000, every):
        folder = tmp_path / str(step)
        killed = made.killed_at(step, lambda: made.make_bank(folder, 5), made.STEPS)  # noqa: B023
        if (folder / "manifest.json").exists():
            MemoryBank.open(folder).verify()
        if (folder / "building" / "manifest.json").exists():
            assert finish_commit(folder)
            assert len(made.contents(MemoryBank.open(folder))) == 5
        if not killed:
            break
    assert step > 10


def test_every_prefix_of_what_is_appended_or_written_aside_is_swept(
    made, work, whole: Path, tmp_path: Path
) -> None:
    """As a kill in the middle of a write leaves it: any first bytes of any file."""
    do, before, _ = work
    done = Path(shutil.copytree(whole, tmp_path / "new"))
    do(made, done)
    old, new = files(whole), files(done)
    new["manifest.json.tmp"] = new["manifest.json"]
    changed = {name: new[name] for name in new if new[name] != old.get(name)}
    changed.pop("manifest.json")
    changed.pop("writer.lock", None)
    for name, content in sorted(changed.items()):
        start = len(old.get(name, b""))
        lengths = range(start, len(content) + 1)
        for length in lengths if LONG else {*lengths[:: max(1, len(lengths) // 5)], lengths[-1]}:
            folder = put(tmp_path / "bank", old | {name: content[:length]})
            where = f"{name} cut at {length}"
            if LONG and length % 50:  # opening and verifying is enough for most
                assert made.contents(MemoryBank.open(folder)) == before, where
            else:
                check_after(made, folder, before, before, where)


class Disk:
    """What a power cut leaves, at its worst: only what was synced, seen from each sync."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.open_files = []  # so that no inode number is used twice
        self.data: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.images: list[dict[str, bytes]] = []
        for path in folder.iterdir():
            if path.is_file():
                self.data[self._inode(path)] = path.read_bytes()
        self.names = self._names()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def _inode(self, path: Path) -> int:
        self.open_files.append(path.open("rb"))
        return path.stat().st_ino

    def _names(self) -> dict[str, int]:
        return {p.name: self._inode(p) for p in self.folder.iterdir() if p.is_file()}

    def fsync(self, descriptor: int) -> None:
        self.look()
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.names = self._names()
        else:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.data[found.st_ino] = path.read_bytes()
        self.look()

    def look(self) -> None:
        """Names as now, the manifest's alone, or as last synced: any may be on the disk."""
        now = self._names()
        for names in (now, self.names | {"manifest.json": now["manifest.json"]}, self.names):
            self.images.append({name: self.data.get(node, b"") for name, node in names.items()})


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up names in /proc")
def test_a_power_cut_leaves_a_whole_bank(made, work, copy: Path, tmp_path, monkeypatch) -> None:
    """What was not synced is lost, or only its name reached the disk: the bank is whole anyway."""
    do, before, after = work
    extra = {name: data for name, data in files(copy).items() if "/" in name}
    disk = Disk(copy, monkeypatch)
    do(made, copy)
    disk.look()
    monkeypatch.undo()
    assert len(disk.images) > 8
    for number, image in enumerate(disk.images):
        folder = put(tmp_path / "bank", image | extra)
        check_after(made, folder, before, after, f"image {number}")
    folder = put(tmp_path / "bank", disk.images[-1] | extra)
    assert made.contents(MemoryBank.open(folder)) == after  # it was vouched for, so it is there


# -- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", WORKS)
def test_a_full_disk_is_a_clear_error_and_costs_nothing(do, made, whole, tmp_path) -> None:
    """No file may grow beyond a limit: as a full disk, at different points of a commit."""
    done = Path(shutil.copytree(whole, tmp_path / "done"))
    do(made, done)
    before, after = (made.contents(MemoryBank.open(folder)) for folder in (whole, done))
    limits = sorted({0, 100, *(len(data) - 1 for data in files(done).values() if data)})
    failed = 0
    for limit in limits:
        folder = Path(shutil.copytree(whole, tmp_path / "bank"))

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: B023
            do(made, folder)  # noqa: B023

        said = in_a_child(limited)
        assert said == "" or said.startswith(f"BankError: {folder}: cannot be written"), said
        failed += bool(said)
        assert check_after(made, folder, before, after, f"limit {limit}") or said
        shutil.rmtree(folder)
    assert failed > 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_what_was_committed(made, small_disk: Path) -> None:
    folder = small_disk / "bank"
    expected, serial = made.make_bank(folder, 20), 20

    def grow() -> None:
        nonlocal serial, expected
        with BankEditor(folder) as editor:
            new = list(range(serial, serial + 40))
            keys, values, _ = made.rows_for(new)
            entries = [made.Entry(f"n{n}", f"text {n}", "", "", "made", "") for n in new]
            editor.append(keys, values, entries)
            editor.commit("more")
        expected, serial = expected | {f"n{n}": n for n in new}, serial + 40

    while not (said := refusal(grow)):
        assert serial < 10_000
    assert "cannot be written" in said
    assert "make room" in said
    bank = MemoryBank.open(folder)
    bank.verify()
    assert {bank.ids[row] for row in bank.live} == set(expected)
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(before.values()) < sum(bank.manifest.sizes.values()) + 65536  # room was given back


@pytest.fixture
def others(whole: Path) -> Iterator[Path]:
    """A bank that anybody can read and nobody but its owner can write."""
    above = Path(tempfile.mkdtemp())
    above.chmod(0o755)
    folder = Path(shutil.copytree(whole, above / "bank"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(above)


@pytest.mark.parametrize("do", WORKS)
def test_a_read_only_folder_can_be_read_and_says_so_to_a_writer(do, made, others: Path) -> None:
    before = files(others)

    def somebody_else() -> None:
        if not os.geteuid():
            os.setuid(65534)
        made.contents(MemoryBank.open(others))
        do(made, others)

    assert in_a_child(somebody_else).startswith(f"BankError: {others}: cannot be written")
    assert files(others) == before


@pytest.mark.parametrize("do", WORKS)
def test_a_read_only_file_system_is_a_clear_error(do, made, copy: Path, tmp_path: Path) -> None:
    """A mount without the right to write, or the errors of one where nothing can be mounted."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    commands = (["mount", "--bind", copy, mounted], ["mount", "-o", "remount,ro,bind", mounted])
    if os.geteuid() or any(subprocess.run(c, capture_output=True).returncode for c in commands):
        pytest.skip("mounting needs root and the right to mount")
    try:
        made.contents(MemoryBank.open(mounted))
        with pytest.raises(BankError, match=r"cannot be written.*make room or get the right"):
            do(made, mounted)
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("do", WORKS)
def test_a_call_that_fails_costs_nothing(
    do, call, code, made, whole, tmp_path, monkeypatch
) -> None:
    """The n-th sync or rename fails, for every n: an error for people, and the bank as it was."""
    real, step = getattr(os, call), 0
    done = Path(shutil.copytree(whole, tmp_path / "done"))
    do(made, done)
    before, after = (made.contents(MemoryBank.open(folder)) for folder in (whole, done))
    while True:
        folder = Path(shutil.copytree(whole, tmp_path / "bank"))
        left = [step]

        def failing(*arguments):
            left[0] -= 1  # noqa: B023
            if left[0] < 0:  # noqa: B023
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        monkeypatch.setattr(os, call, failing)
        said = refusal(lambda: do(made, folder))  # noqa: B023
        monkeypatch.setattr(os, call, real)
        assert said == "" or os.strerror(code) in said
        check_after(made, folder, before, after, f"{call} {step}")
        shutil.rmtree(folder)
        if not said:
            break
        step += 1
    assert step >= (1 if call == "replace" else 4)


# -- damage ---------------------------------------------------------------------------------------

NAMES = [
    "keys-1.f16",
    "values-1.i8",
    "entries-1-1.sqlite",
    "entries-1-3.sqlite",
    "compressor/key.json",
    "manifest.json",
]


def test_the_names_are_those_of_the_bank(whole: Path) -> None:
    assert set(NAMES) < set(files(whole))


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_anywhere_is_found_and_the_file_named(made, name: str, copy: Path) -> None:
    path = copy / name
    content, rng = path.read_bytes(), np.random.default_rng(0)
    places = np.arange(len(content)) if LONG else rng.choice(len(content), min(len(content), 60))
    for place in places.tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        said = refusal(lambda: MemoryBank.open(copy).verify())
        assert name in said, f"bit flipped in byte {place}"
        used = refusal(lambda: (MemoryBank.open(copy).live, MemoryBank.open(copy).ids))
        assert used == "" or str(copy) in used  # using it may say so, and nothing else


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_anywhere_is_found_and_the_file_named(name: str, copy: Path) -> None:
    path = copy / name
    content = path.read_bytes()
    for length in sorted({0, 1, len(content) // 2, len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(BankError, match=name):
            MemoryBank.open(copy).verify()


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("do", [add, squeeze, merge, export])
def test_damage_is_never_given_a_new_hash(do, name: str, made, copy: Path) -> None:
    """What rewrites or copies damaged rows must not make `verify` call them whole."""
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    before = files(copy)
    if said := refusal(lambda: do(made, copy)):
        assert name in said
        assert files(copy) == before
    with pytest.raises(BankError, match=name):
        MemoryBank.open(copy).verify()
    if do in (merge, export):
        assert said
        assert list(copy.parent.iterdir()) == [copy]  # nothing was made of it


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("do", [merge, export])
def test_what_cannot_be_read_is_named_and_not_the_target(do, name, made, copy, locked) -> None:
    locked(copy / name)
    said = refusal(lambda: do(made, copy))
    assert f"{copy / name}: cannot be read (Permission denied)" in said
    assert "written" not in said


@pytest.mark.parametrize("do", WORKS)
def test_a_newer_bank_is_not_touched(do, made, copy: Path) -> None:
    content = json.loads((copy / "manifest.json").read_bytes()) | {"format_version": 3, "new": 1}
    (copy / "manifest.json").write_text(json.dumps(content))
    before = files(copy)
    with pytest.raises(BankError, match=r"manifest\.json: written in format 3.*upgrade"):
        do(made, copy)
    assert files(copy) == before


# -- company --------------------------------------------------------------------------------------


@pytest.fixture
def other_writer(copy: Path) -> Iterator[int]:
    """Another process that has the bank's lock and stays."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with BankEditor(copy):
            os.write(writing, b"!")
            time.sleep(600)
        os._exit(0)
    os.read(reading, 1)
    yield pid
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("do", WORKS)
def test_a_second_writer_is_refused_until_the_first_is_gone(
    do, made, copy: Path, other_writer: int
) -> None:
    before = files(copy)
    with pytest.raises(BankError, match=r"another process is writing.*Reading goes on"):
        do(made, copy)
    assert files(copy) == before
    made.contents(MemoryBank.open(copy))
    os.kill(other_writer, signal.SIGKILL)
    with WriteLock(copy, wait=True):
        pass
    do(made, copy)
    made.contents(MemoryBank.open(copy))


def read_on(made, folder: Path, seconds: float, faults: int) -> None:
    """Search, gather and refresh until the time is over; say what does not fit."""
    from tinyalign.memory.search.index import KeyIndex

    bank, rounds = MemoryBank.open(folder), 0
    index, rng, end = KeyIndex(bank), np.random.default_rng(os.getpid()), time.time() + seconds
    try:
        while time.time() < end or rounds < 3:
            gone = set(bank.removed.tolist())
            keys, _, _ = made.rows_for(rng.integers(0, 5000, 4).tolist())
            rows = np.unique(index.topk(keys, 5)[0].numpy())
            rows = rows[rows >= 0]
            assert not gone & set(rows.tolist()), "a removed row was found"
            assert made.wrong_rows(bank, rows) == [], "ids, keys and values do not belong together"
            texts = bank.entries.at(rows.tolist())
            for row, found in zip(rows.tolist(), bank.gather(rows).numpy()):
                exact = made.value(int(texts[row].text.split()[1]))
                assert np.abs(found - exact).max() < 0.03, "another's value"
            assert (bank.live < bank.rows).all()
            if rounds % 3 == 2:
                bank.refresh()
            rounds += 1
    except BaseException as error:
        os.write(faults, f"reader: {error!r}\n".encode())


@pytest.mark.slow
def test_readers_never_see_half_a_change(made, tmp_path: Path) -> None:
    """Three readers look while a writer adds, removes and compacts as fast as it can."""
    folder = tmp_path / "bank"
    made.make_bank(folder, 60)
    seconds, (reading, writing), pids = 120.0 if LONG else 3.0, os.pipe(), []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            os.close(reading)
            read_on(made, folder, seconds, writing)
            os._exit(0)
        pids.append(pid)
    os.close(writing)
    end = time.time() + seconds
    for commits, _ in enumerate(made.changes(folder, 0, 60, lambda what: None)):
        if time.time() > end and commits > 3:
            break
    for pid in pids:
        os.waitpid(pid, 0)
    with open(reading) as pipe:
        assert pipe.read() == ""
    MemoryBank.open(folder).verify()
