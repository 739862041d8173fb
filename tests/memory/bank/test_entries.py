from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyalign.errors import BankError
from tinyalign.memory.bank.entries import Commit, Entries, Entry, Segment, write_segment


def entry(number: int, **changes: str) -> Entry:
    fields = {
        "id": f"é{number}", "text": f"text {number}", "image_ref": f"{number}.jpg",
        "image_hash": f"image {number % 4}", "source": "ab"[number % 2], "instruction": "say",
    }  # fmt: skip
    return Entry(**(fields | changes))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Rows 0..5 and 6..7 in two segments; rows 1 and 7 removed."""
    found = [tmp_path / "one.sqlite", tmp_path / "two.sqlite"]
    write_segment(found[0], enumerate(map(entry, range(6))), [], [Commit(1, 6, 0, "built")])
    later = [(row, entry(row)) for row in (6, 7)]
    commits = [Commit(2, 2, 1, "more"), Commit(3, 0, 1, "fewer")]
    write_segment(found[1], later, [1, 7], commits)
    return found


def test_segments_read_as_one(paths: list[Path]) -> None:
    entries = Entries(paths)
    assert entries.column("id") == [f"é{n}" for n in range(8)]
    assert entries.at([7, 0, 0, 99]) == {7: entry(7), 0: entry(0)}
    assert entries.rows_with("id", ["é6", "é2", "nobody"]) == [2, 6]
    assert entries.rows_with("image_hash", ["image 2"]) == [2, 6]
    assert entries.sources() == ["a", "b"]
    assert entries.removed().tolist() == [1, 7]
    assert [one.number for one in entries.commits()] == [1, 2, 3]
    with pytest.raises(KeyError):
        entries.column("password")


def test_more_are_asked_for_than_one_statement_takes(paths: list[Path]) -> None:
    entries = Entries(paths)
    assert entries.rows_with("id", [f"é{n}" for n in range(2000)]) == list(range(8))
    assert len(entries.at(range(2000))) == 8


def test_the_same_entries_give_the_same_bytes(paths: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "again.sqlite"
    again.write_text("left by a killed writer")
    write_segment(again, enumerate(map(entry, range(6))), [], [Commit(1, 6, 0, "built")])
    assert again.read_bytes() == paths[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.sqlite",
        "one.sqlite",
        "two.sqlite",
    ]


def test_equal_entries_have_equal_contents_and_others_not(paths: list[Path]) -> None:
    first = Entries(paths).contents().tolist()
    assert len(set(first)) == 8
    assert Entries(paths[1:]).contents().tolist() == first[6:]


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    odd = entry(0, text="a'b\"c;\n\t\0d 😀 ﷽", instruction="")
    write_segment(tmp_path / "one.sqlite", [(0, odd)], [], [])
    assert Entries([tmp_path / "one.sqlite"]).at([0]) == {0: odd}


def test_a_segment_is_read_on_after_its_file_was_deleted(paths: list[Path]) -> None:
    segment = Segment(paths[0])  # nothing read yet
    paths[0].unlink()
    assert segment.rows() == list(range(6))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("deleted", [False, True])
def test_a_forked_worker_reads_it_too(paths: list[Path], deleted: bool) -> None:
    """As a data loader's worker does, also when a commit replaced the file since."""
    entries = Entries(paths)
    assert entries.column("id")[0] == "é0"
    if deleted:
        paths[0].unlink()
        paths[1].unlink()
        paths[1].write_bytes(b"another file of this name")
    pid = os.fork()
    if not pid:
        try:
            fine = entries.at([3, 7]) == {3: entry(3), 7: entry(7)}
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 0
    assert entries.at([3]) == {3: entry(3)}


def test_a_missing_or_damaged_segment_is_named(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"three\.sqlite: cannot be opened.*refresh"):
        Entries([tmp_path / "three.sqlite"])
    paths[0].write_bytes(b"\0" * 8192)
    with pytest.raises(BankError, match=r"one\.sqlite: damaged.*restore"):
        Entries(paths).column("id")


def test_a_segment_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    """The writer says what that means for the bank."""
    with pytest.raises(OSError, match=r"one\.sqlite"):
        write_segment(tmp_path / "nowhere" / "one.sqlite", [], [], [])
