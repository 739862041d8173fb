from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyalign.memory.approximate import FOLDER, IvfSearch
from tinyalign.memory.bank import MemoryBank
from tinyalign.memory.editor import BankEditor, compact
from tinyalign.memory.search import exact_topk

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
    import shutil

    return MemoryBank.open(shutil.copytree(made_bank, tmp_path / "bank"))


def notes(bank: MemoryBank) -> dict:
    return json.loads(next((bank.folder / FOLDER).glob("*.json")).read_text())


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
    assert notes(bank)["rows"] == bank.rows
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
    monkeypatch.setattr("tinyalign.memory.approximate._trained", None)
    search = IvfSearch.of(bank, 0.9)
    assert search.index.ntotal == notes(bank)["rows"] == 2120
    rows = search.topk(made.rows_for([107])[0], 1)[0]
    assert rows.tolist() == [[2107]]


def test_a_kept_index_is_read_and_gives_the_same(bank, monkeypatch) -> None:
    queries = torch.from_numpy(bank.keys[:9].astype(np.float32))
    first = IvfSearch.of(bank, 0.9).topk(queries, 5)
    monkeypatch.setattr("tinyalign.memory.approximate._trained", None)
    monkeypatch.setattr(IvfSearch, "_tune", None)
    again = IvfSearch.of(MemoryBank.open(bank.folder), 0.9).topk(queries, 5)
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("damage", ["truncated", "empty", "notes", "of another bank", "crossed"])
def test_an_index_that_cannot_be_used_is_made_anew(bank, damage: str) -> None:
    """It is a cache. crossed: a kill between the index and what is noted of it."""
    IvfSearch.of(bank, 0.9)
    path = next((bank.folder / FOLDER).glob("*.faiss"))
    told = path.with_suffix(".json")
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    elif damage == "notes":
        told.write_text("{")
    else:
        change = {"of": "another"} if damage == "of another bank" else {"rows": 1500}
        told.write_text(json.dumps(notes(bank) | change))
    search = IvfSearch.of(bank, 0.9)
    assert search.index.ntotal == notes(bank)["rows"] == bank.rows
    assert share_found(search, bank) >= 0.85


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
