from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.search.index_note import IndexNote, index_path, index_problems, usable_note


@pytest.fixture
def bank(made, tmp_path: Path) -> MemoryBank:
    """A bank with an index file, of which the note alone is looked at."""
    made.make_bank(tmp_path / "bank", 20)
    bank = MemoryBank.open(tmp_path / "bank")
    path = index_path(bank)
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)))
    note = IndexNote.of_file(path, bank.manifest, nprobe=4, recall=0.97, wanted=0.95)
    note.write(path.with_suffix(".tmp"), path.with_suffix(".json"))
    return bank


def test_a_note_is_read_as_it_was_written(bank) -> None:
    note = usable_note(bank)
    assert note is not None
    assert (note.rows, note.nprobe, note.recall, note.wanted) == (20, 4, 0.97, 0.95)
    assert note.segments[-1][2] == bank.manifest.segments[-1].keys_hash
    assert not list(index_problems(bank))


def test_every_flipped_byte_of_the_index_is_found(bank) -> None:
    path = index_path(bank)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert usable_note(bank) is None
    path.write_bytes(whole)
    assert usable_note(bank) is not None


def test_a_number_changed_in_the_note_is_found(bank) -> None:
    path = index_path(bank).with_suffix(".json")
    path.write_text(path.read_text().replace('"nprobe": 4', '"nprobe": 1'))
    assert usable_note(bank) is None
    assert "ivf-1.json: not the note of an index" in next(index_problems(bank))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected 256 bytes, found 0"),
        (bytes(256), "expected hash"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_index_is_a_problem_that_names_file_and_cure(bank, content, problem) -> None:
    path = index_path(bank)
    path.unlink() if content is None else path.write_bytes(content)
    (said,) = index_problems(bank)
    assert str(path) in said
    assert problem in said
    assert "makes it anew; the bank itself is not concerned" in said
    bank.verify()


def test_without_a_note_there_is_no_index_and_no_problem(bank) -> None:
    index_path(bank).with_suffix(".json").unlink()
    assert usable_note(bank) is None
    assert not list(index_problems(bank))


@pytest.mark.parametrize("content", ["[]", "{}", '{"of": "x", "rows": 20, "nprobe": 1}', "{"])
def test_a_note_of_another_form_is_not_used(bank, content: str) -> None:
    index_path(bank).with_suffix(".json").write_text(content)
    assert usable_note(bank) is None
    assert len(list(index_problems(bank))) == 1
