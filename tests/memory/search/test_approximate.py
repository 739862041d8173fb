from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.editor import BankEditor, compact
from tinyalign.memory.search.approximate import IvfSearch
from tinyalign.memory.search.exact import exact_topk
from tinyalign.memory.search.index_note import FOLDER, IndexNote, index_path

faiss = pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def made_bank(made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ivf") / "bank"
    made.make_bank(folder, 100)
    names, rng = iter(range(10_000)), np.random.default_rng(0)
    with BankEditor(folder) as editor:
        keys = torch.from_numpy(rng.standard_normal((2000, 16), dtype=np.float32))
        keys = torch.nn.functional.normalize(keys, dim=1)
        entries = [made.Entry(f"r{next(names)}", "", "", "", "made", "") for _ in keys]
        editor.append(keys, torch.zeros(len(keys), 4, 8), entries)
        editor.commit("two thousand")
    return folder


@pytest.fixture
def bank(made_bank: Path, tmp_path: Path) -> MemoryBank:
    return MemoryBank.open(shutil.copytree(made_bank, tmp_path / "bank"))


def notes(bank: MemoryBank) -> IndexNote:
    return IndexNote.read(index_path(bank).with_suffix(".json"))


def flip(path: Path, place: int) -> None:
    """Damage one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def share_found(search: IvfSearch, bank: MemoryBank) -> float:
    queries = torch.from_numpy(bank.keys[::7].astype(np.float32))
    found, true = (
        one[0].tolist() for one in (search.topk(queries, 5), exact_topk(queries, bank.keys, 5))
    )
    return sum(len(set(a) & set(b)) for a, b in zip(found, true)) / (5 * len(true))


@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
def test_the_recall_asked_for_is_reached_and_no_more_is_looked_at(bank, recall: float) -> None:
    search = IvfSearch.of(bank, recall)
    assert search.recall >= recall
    assert share_found(search, bank) >= recall - 0.05  # on other keys than it was tuned on
    assert notes(bank).rows == bank.rows
    if recall == 0.5:
        assert search.nprobe < search.nlist


def test_rows_come_by_exact_score_without_what_is_banned(bank) -> None:
    search = IvfSearch.of(bank, 1.0)
    queries = torch.from_numpy(bank.keys[:3].astype(np.float32))
    hidden = np.array([0, 5])
    rows, scores = search.topk(queries, 4, [[], [1], []], hidden)
    true = exact_topk(queries, bank.keys, 4, [[0, 5], [0, 5, 1], [0, 5]])
    assert rows.tolist() == true[0].tolist()
    assert scores.tolist() == true[1].tolist()
    assert search.topk(queries, 0)[0].shape == (3, 0)
    assert search.topk(queries[:0], 4)[0].shape == (0, 4)


def test_rows_added_later_are_found_without_training_anew(made, bank, monkeypatch) -> None:
    IvfSearch.of(bank, 0.9)
    with BankEditor(bank.folder) as editor:
        editor.append(*made.rows_for(list(range(100, 120))))
        editor.commit("twenty more")
    bank.refresh()
    monkeypatch.setattr("tinyalign.memory.search.approximate._trained", None)
    search = IvfSearch.of(bank, 0.9)
    assert search.index.ntotal == notes(bank).rows == 2120
    rows = search.topk(made.rows_for([107])[0], 1)[0]
    assert rows.tolist() == [[2107]]


def test_a_kept_index_is_read_and_gives_the_same(bank, monkeypatch) -> None:
    queries = torch.from_numpy(bank.keys[:9].astype(np.float32))
    first = IvfSearch.of(bank, 0.9).topk(queries, 5)
    monkeypatch.setattr("tinyalign.memory.search.approximate._trained", None)
    monkeypatch.setattr(IvfSearch, "_tune", None)
    again = IvfSearch.of(MemoryBank.open(bank.folder), 0.9).topk(queries, 5)
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("damage", ["truncated", "empty", "notes", "missing", "crossed"])
def test_an_index_that_cannot_be_used_is_made_anew(bank, damage: str) -> None:
    """It is a cache. crossed: the note of another index file."""
    IvfSearch.of(bank, 0.9)
    path = index_path(bank)
    told = path.with_suffix(".json")
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    elif damage == "missing":
        path.unlink()
    elif damage == "notes":
        told.write_text("{")
    else:
        replace(notes(bank), hash="0" * 16).write(told.with_suffix(".tmp"), told)
    search = IvfSearch.of(bank, 0.9)
    assert search.index.ntotal == notes(bank).rows == bank.rows
    assert share_found(search, bank) >= 0.85


def test_an_index_with_flipped_bytes_is_made_anew_and_the_log_says_so(bank, caplog) -> None:
    IvfSearch.of(bank, 0.9)
    path = index_path(bank)
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    with caplog.at_level(logging.INFO, logger="tinyalign"):
        IvfSearch.of(MemoryBank.open(bank.folder), 0.9)
    assert re.search(r"ivf-1\.faiss: expected hash \w+, found \w+; it is damaged", caplog.text)
    assert path.read_bytes() == whole


def add(made, folder: Path, numbers: list[int]) -> MemoryBank:
    with BankEditor(folder) as editor:
        editor.append(*made.rows_for(numbers))
        editor.commit("more")
    return MemoryBank.open(folder)


@pytest.mark.parametrize("later", [[], [140, 141]])
def test_an_index_of_rows_that_a_restored_bank_does_not_have_is_made_anew(
    made, bank, tmp_path: Path, later: list[int]
) -> None:
    """The bank's files come back from a copy, other rows are added, and index/ stayed."""
    copy = shutil.copytree(bank.folder, tmp_path / "copy")
    IvfSearch.of(add(made, bank.folder, list(range(100, 120))), 0.9)
    shutil.move(bank.folder / FOLDER, copy / FOLDER)
    restored = add(made, copy, list(range(120, 140)) + later)
    search = IvfSearch.of(restored, 1.0)
    rows = search.topk(made.rows_for([127])[0], 1)[0]
    assert rows.tolist() == [[2107]]
    assert search.index.ntotal == notes(restored).rows == restored.rows


def test_commits_that_were_merged_since_hold_the_same_rows(made, bank, monkeypatch) -> None:
    IvfSearch.of(add(made, bank.folder, [100, 101]), 0.9)
    before = len(MemoryBank.open(bank.folder).manifest.segments)
    grown = add(made, bank.folder, [102, 103])
    assert len(grown.manifest.segments) == before  # the two rows of 100 and 101 are merged into it
    monkeypatch.setattr("tinyalign.memory.search.approximate._trained", None)
    search = IvfSearch.of(grown, 0.9)
    assert search.topk(made.rows_for([101, 103])[0], 1)[0].tolist() == [[2101], [2103]]


def test_a_compacted_bank_gets_an_index_of_its_own(bank) -> None:
    IvfSearch.of(bank, 0.9)
    with BankEditor(bank.folder) as editor:
        editor.remove(range(50))
        editor.commit("fifty fewer")
    now = compact(bank.folder)
    (bank.folder / FOLDER / "ivf-2.faiss.123.tmp").write_bytes(b"left by a killed reader")
    assert IvfSearch.of(now, 0.9).index.ntotal == now.rows == 2050
    found = sorted(path.name for path in (bank.folder / FOLDER).iterdir())
    assert found == ["ivf-2.faiss", "ivf-2.json"]


def test_a_folder_that_cannot_be_written_is_searched_without_keeping_the_index(
    bank, monkeypatch, caplog
) -> None:
    def refused(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with caplog.at_level(logging.INFO, logger="tinyalign"):
        assert IvfSearch.of(bank, 0.9).recall >= 0.9
    assert "the index is not kept" in caplog.text
    assert not (bank.folder / FOLDER).exists()


def test_what_a_reader_keeps_is_no_damage_to_the_bank(made, bank) -> None:
    IvfSearch.of(bank, 0.9)
    bank.verify()
    with BankEditor(bank.folder) as editor:
        editor.append(*made.rows_for([100]))
        editor.commit("one more")
    MemoryBank.open(bank.folder).verify()
