from __future__ import annotations

import math
import os
import pickle
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyalign.errors import BankError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.manifest import SegmentRecord
from tinyalign.memory.building.editor import BankEditor, _to_merge, compact
from tinyalign.memory.search.index import KeyIndex


@pytest.fixture
def folder(made, tmp_path: Path) -> Path:
    """A bank of ten entries: s0 to s9."""
    made.make_bank(tmp_path / "bank", 10)
    return tmp_path / "bank"


def add(made, folder: Path, *serials: int) -> MemoryBank:
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for(list(serials)))
        return editor.commit("added")


def remove(folder: Path, *rows: int) -> MemoryBank:
    with BankEditor(folder) as editor:
        editor.remove(rows)
        return editor.commit("removed")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


# -- commits --------------------------------------------------------------------------------------


def test_adding_removing_and_updating_in_one_commit(made, folder: Path) -> None:
    with BankEditor(folder) as editor:
        assert editor.remove([2, 5, 5]) == 2
        assert editor.remove([5]) == 0
        editor.append(*made.rows_for([10, 11]))
        editor.append(*made.rows_for([made.IDS + 2]))  # s2 again, with another text
        assert {"s0", "s2", "s10"} <= {
            name for name in ("s0", "s2", "s5", "s10") if name in editor.ids
        }
        assert "s5" not in editor.ids
        bank = editor.commit("all at once")
    expected = {f"s{n}": n for n in (0, 1, 3, 4, 6, 7, 8, 9, 10, 11)} | {"s2": made.IDS + 2}
    assert made.contents(bank) == made.contents(MemoryBank.open(folder)) == expected
    last = bank.entries.commits()[-1]
    assert (last.number, last.added, last.removed, last.note) == (2, 3, 2, "all at once")


def test_rows_keep_their_numbers(made, folder: Path) -> None:
    remove(folder, 0, 4)
    bank = add(made, folder, 10)
    assert bank.live.tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [bank.entry(row).id for row in (1, 9, 10)] == ["s1", "s9", "s10"]
    assert bank.rows == 11
    assert len(bank) == 9


def test_an_id_can_come_again_after_it_was_removed(made, folder: Path) -> None:
    remove(folder, 3)
    bank = add(made, folder, made.IDS + 3)
    assert made.contents(bank)["s3"] == made.IDS + 3
    assert bank.rows_of(["s3"]) == [3, 10]  # a query must get neither
    compact(folder)
    assert made.contents(MemoryBank.open(folder))["s3"] == made.IDS + 3


def test_what_was_not_committed_is_undone(made, folder: Path) -> None:
    before, files = made.contents(MemoryBank.open(folder)), names(folder)
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for([10, 11]))
        editor.remove([0])
    with suppress(ZeroDivisionError), BankEditor(folder) as editor:
        editor.append(*made.rows_for([10, 11]))
        editor.remove([1 // 0])
    bank = MemoryBank.open(folder)
    assert made.contents(bank) == before
    assert names(folder) - {"writer.lock"} == files
    assert all((folder / name).stat().st_size == size for name, size in bank.manifest.sizes.items())


def test_several_commits_in_one_with(made, folder: Path) -> None:
    with BankEditor(folder) as editor:
        for serial in range(10, 14):
            editor.append(*made.rows_for([serial]))
            editor.remove([serial - 10])
            assert len(editor.commit("one more, one fewer")) == 10
            assert editor.added == {}
        editor.append(*made.rows_for([14]))  # not committed
    found = made.contents(MemoryBank.open(folder))
    assert set(found.values()) == set(range(4, 14))


def test_a_commit_without_changes_writes_nothing(folder: Path) -> None:
    before = MemoryBank.open(folder).hash
    with BankEditor(folder) as editor:
        assert editor.commit("nothing").hash == before
        editor.remove([1])
        editor.commit("one")
        first = editor.manifest.commit
        editor.remove([1])
        assert editor.commit("the same again").manifest.commit == first


def test_the_same_changes_give_the_same_bytes(made, folder: Path, tmp_path: Path) -> None:
    made.make_bank(tmp_path / "other", 10)
    for one in (folder, tmp_path / "other"):
        add(made, one, 10, 11)
        remove(one, 3)
        compact(one)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == {
        name: (tmp_path / "other" / name).read_bytes() for name in names(tmp_path / "other")
    }


def test_ids_that_are_there_or_come_twice_are_refused_and_cost_nothing(made, folder: Path) -> None:
    with BankEditor(folder) as editor:
        with pytest.raises(BankError, match="s3: in the bank already"):
            editor.append(*made.rows_for([10, 3]))
        with pytest.raises(BankError, match="s10: given 2 times"):
            editor.append(*made.rows_for([10, made.IDS + 10]))
        editor.append(*made.rows_for([11]))
        with pytest.raises(BankError, match="s11: in the bank already"):
            editor.append(*made.rows_for([11]))
        bank = editor.commit("one")
    assert set(made.contents(bank)) == {f"s{n}" for n in [*range(10), 11]}


def test_numbers_that_are_not_finite_and_wrong_shapes_are_refused(made, folder: Path) -> None:
    keys, values, entries = made.rows_for([10])
    with BankEditor(folder) as editor:
        with pytest.raises(BankError, match=r"s10.*not finite"):
            editor.append(keys, values * torch.inf, entries)
        with pytest.raises(BankError, match="shapes"):
            editor.append(keys[:, :3], values, entries)
        with pytest.raises(BankError, match="1 keys, 1 values, 0 entries"):
            editor.append(keys, values, [])
        with pytest.raises(BankError, match="no row 10; it has 10 rows"):
            editor.remove([10])
        with pytest.raises(BankError, match="no row -1"):
            editor.remove([-1])
        assert editor.commit("nothing").manifest.commit == 1


def test_after_a_write_that_failed_half_way_nothing_can_be_committed(made, folder: Path) -> None:
    """Keys without values would give every later entry another's value."""
    before = made.contents(MemoryBank.open(folder))
    with BankEditor(folder) as editor:
        editor._values.close()
        editor._values = open(folder / editor.manifest.values_name, "rb")  # noqa: SIM115
        with pytest.raises(BankError, match="cannot be written"):
            editor.append(*made.rows_for([10]))
        for change in (lambda: editor.append(*made.rows_for([11])), lambda: editor.commit("x")):
            with pytest.raises(BankError, match="an earlier change failed"):
                change()
    assert made.contents(MemoryBank.open(folder)) == before
    assert made.contents(add(made, folder, 10)) == before | {"s10": 10}


def test_a_writer_that_went_around_the_lock_is_noticed(made, folder: Path) -> None:
    """The second sweeps the first one's rows away; the first must not commit what is gone."""
    with BankEditor(folder) as first:
        first.append(*made.rows_for([10]))
        (folder / "writer.lock").unlink()  # somebody thought it was left over
        add(made, folder, 11)
        with pytest.raises(BankError, match=r"another process changed.*Nothing was committed"):
            first.commit("too late")
    assert set(made.contents(MemoryBank.open(folder)).values()) == {*range(10), 11}


@pytest.mark.parametrize("change", [BankEditor, compact])
def test_a_folder_without_a_bank_stays_as_it_is(change, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="not found"):
        getattr(change(tmp_path / "nothing"), "__enter__", None)()
    assert list(tmp_path.iterdir()) == []


def test_only_a_writers_own_leftovers_are_deleted(made, folder: Path) -> None:
    left = {"keys-2.f16", "values-9.i8", "entries-1-7.sqlite", "manifest.json.tmp"}
    kept = {"keys-1.f16.bak", "entries-notes.txt", "values-old", "draft.tmp"}
    for name in left | kept:
        (folder / name).write_text("something")
    add(made, folder, 10)
    assert names(folder) & (left | kept) == kept


# -- segments -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=120))
def test_merging_keeps_the_number_of_segments_logarithmic(sizes: list[int]) -> None:
    record = SegmentRecord("", 0, 0, 0, 0, "", "", "")
    segments: list[SegmentRecord] = []
    copied = total = 0
    for size in sizes:
        kept, merged = _to_merge(segments, size)
        assert [*kept, *merged] == segments
        size += sum(one.size for one in merged)
        copied += size
        total = sum(one.size for one in kept) + size
        segments = [*kept, replace(record, stop=size)]
        assert all(a.size > b.size for a, b in pairwise(segments))
    assert len(segments) <= math.log2(max(total, 1)) + 1
    assert copied <= total * (math.log2(max(total, 1)) + 1)


def test_many_small_commits_leave_few_files(made, folder: Path) -> None:
    for serial in range(10, 40):
        bank = add(made, folder, serial)
    assert len(bank.manifest.segments) <= math.log2(40) + 1
    assert [one.number for one in bank.entries.commits()] == list(range(1, 32))
    assert names(folder) == {*bank.manifest.sizes, "manifest.json", "writer.lock"} - {
        "compressor/key.json"
    }
    assert set(made.contents(bank).values()) == set(range(40))


# -- readers that are open ------------------------------------------------------------------------


def test_adds_show_after_refresh(made, folder: Path) -> None:
    reader = MemoryBank.open(folder)
    assert reader.ids[-1] == "s9"
    add(made, folder, 10)
    assert len(reader) == reader.rows == 10
    assert reader.refresh()
    assert len(reader) == 11
    assert reader.ids[-1] == "s10"
    assert not reader.refresh()


def test_a_removal_shows_at_once_and_stays_through_other_commits(made, folder: Path) -> None:
    reader = MemoryBank.open(folder)
    index, queries = KeyIndex(reader), made.rows_for([3])[0]
    assert index.topk(queries, 1)[0].tolist() == [[3]]
    remove(folder, 3)
    assert index.topk(queries, 1)[0].tolist() != [[3]]
    add(made, folder, 10)
    remove(folder, 10, 4)  # a row that this view does not have, and one that it has
    assert reader.removed.tolist() == [3, 4]
    assert len(reader) == 8
    assert -1 in index.topk(queries, 9)[0].tolist()[0]


@pytest.mark.parametrize("looked", [False, True])
def test_removals_before_and_after_a_compaction_reach_an_open_reader(
    made, folder: Path, looked: bool
) -> None:
    """Rows are renumbered on disk, not in the view. Whether it had looked before or not."""
    reader = MemoryBank.open(folder)
    if looked:
        assert reader.removed.tolist() == []
    remove(folder, 2)
    compact(folder)
    assert reader.removed.tolist() == [2]
    now = remove(folder, 2)  # which is s3 since the compaction
    assert now.ids[2] == "s3"
    assert reader.removed.tolist() == [2, 3]
    add(made, folder, made.IDS + 3, 10)  # s3 comes back as another entry
    compact(folder)
    assert reader.removed.tolist() == [2, 3]
    assert made.wrong_rows(reader, np.arange(10)) == []  # the view is whole, whatever happened
    assert reader.refresh()
    assert len(reader) == 10
    assert made.contents(reader) == made.contents(MemoryBank.open(folder))


def test_an_index_follows_a_reader_through_refresh_and_compaction(made, folder: Path) -> None:
    reader = MemoryBank.open(folder)
    index, queries = KeyIndex(reader), made.rows_for([9, 10])[0]
    assert index.topk(queries, 1)[0][0].tolist() == [9]
    add(made, folder, 10)
    reader.refresh()
    assert index.topk(queries, 1)[0].tolist() == [[9], [10]]
    remove(folder, 0)
    compact(folder)
    assert index.topk(queries, 1)[0].tolist() == [[9], [10]]
    reader.refresh()
    assert index.topk(queries, 1)[0].tolist() == [[8], [9]]


def test_a_reader_outlives_its_folder(made, folder: Path) -> None:
    reader = MemoryBank.open(folder)
    remove(folder, 1)
    assert reader.removed.tolist() == [1]
    folder.rename(folder.with_name("moved"))
    assert reader.removed.tolist() == [1]
    assert made.wrong_rows(reader, np.arange(10)) == []


def test_a_pickled_reader_opens_the_same_rows_or_says_why_not(
    made, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    data = pickle.dumps(MemoryBank.open("bank"))
    monkeypatch.chdir("/")
    remove(folder, 1)
    assert pickle.loads(data).removed.tolist() == [1]
    compact(folder)
    with pytest.raises(BankError, match="was compacted since it was opened; open it anew"):
        pickle.loads(data)


# -- compaction -----------------------------------------------------------------------------------


def test_compacting_frees_the_room_and_keeps_the_history(made, folder: Path) -> None:
    add(made, folder, 10, 11)
    remove(folder, 0, 10)
    expected = made.contents(MemoryBank.open(folder))
    bank = compact(folder)
    assert made.contents(bank) == expected
    assert bank.rows == len(bank) == 10
    assert bank.ids == [f"s{n}" for n in [*range(1, 10), 11]]
    assert bank.manifest.generation == 2
    assert [one.note for one in bank.entries.commits()] == [
        "built",
        "added",
        "removed",
        "compacted",
    ]
    assert names(folder) == {
        "keys-2.f16", "values-2.i8", "entries-2-4.sqlite", "manifest.json", "writer.lock",
    }  # fmt: skip
    hash_before = bank.hash
    assert compact(folder).hash == hash_before  # nothing left to do


def test_a_bank_can_be_emptied_and_filled_again(made, folder: Path) -> None:
    reader = MemoryBank.open(folder)
    remove(folder, *range(10))
    bank = compact(folder)
    assert len(bank) == bank.rows == 0
    bank.verify()
    assert KeyIndex(bank).topk(made.rows_for([0])[0], 2)[0].tolist() == [[-1, -1]]
    assert len(reader) == 0
    assert made.contents(add(made, folder, 5)) == {"s5": 5}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_of_a_writer_writes_nothing_twice(made, folder: Path) -> None:
    """As a data loader's workers, forked between two batches, end."""
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for([10]))
        pid = os.fork()
        if not pid:
            try:
                editor._keys.close()
                editor._values.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        editor.append(*made.rows_for([11]))
        bank = editor.commit("two")
    assert set(made.contents(bank).values()) == set(range(12))
