from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tinyalign.errors import ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.editor import BankEditor
from tinyalign.memory.search import index as index_module
from tinyalign.memory.search.approximate import IvfSearch
from tinyalign.memory.search.exact import exact_topk
from tinyalign.memory.search.index import KeyIndex


@pytest.fixture
def bank(made, tmp_path: Path) -> MemoryBank:
    made.make_bank(tmp_path / "bank", 120)
    return MemoryBank.open(tmp_path / "bank")


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(index_module.EXACT_UP_TO, "cpu", 119)


def test_a_small_bank_is_searched_exactly(made, bank) -> None:
    queries = made.rows_for([3, 500])[0]
    expected = exact_topk(queries, bank.keys, 4)
    found = KeyIndex(bank).topk(queries, 4)
    assert found[0].tolist() == expected[0].tolist()
    assert found[1].tolist() == expected[1].tolist()


@pytest.mark.usefixtures("small_limit")
def test_a_large_bank_is_searched_approximately_and_the_log_says_so(made, bank, caplog) -> None:
    pytest.importorskip("faiss")
    index = KeyIndex(bank, recall=0.9)
    with caplog.at_level(logging.INFO, logger="tinyalign"):
        found = index.topk(made.rows_for([3])[0], 1)[0]
        index.topk(made.rows_for([4])[0], 1)
    assert found.tolist() == [[3]]
    assert caplog.text.count("120 rows, so approximate") == 1
    assert "of the 0.90 asked for" in caplog.text
    assert isinstance(index._approximate, IvfSearch)


@pytest.mark.usefixtures("small_limit")
def test_without_faiss_a_large_bank_is_searched_exactly_with_a_hint(
    made, bank, caplog, monkeypatch
) -> None:
    monkeypatch.setattr("tinyalign.memory.search.approximate.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="tinyalign"):
        found = KeyIndex(bank).topk(made.rows_for([3])[0], 1)[0]
    assert found.tolist() == [[3]]
    assert "tinyalign-vlm[ann]" in caplog.text
    with pytest.raises(ConfigError, match=r"faiss.*not installed.*pip install"):
        KeyIndex(bank, engine="ivf").topk(made.rows_for([3])[0], 1)


@pytest.mark.parametrize("engine", ["exact", "ivf"])
def test_only_these_rows_and_never_removed_ones(made, bank, engine) -> None:
    if engine == "ivf":
        pytest.importorskip("faiss")
    index, queries = KeyIndex(bank, engine=engine), made.rows_for([3])[0]
    only = np.array([3, 7, 50, 51])
    assert index.topk(queries, 1, only=only)[0].tolist() == [[3]]
    with BankEditor(bank.folder) as editor:
        editor.remove([3, 50])
        editor.commit("two fewer")
    assert set(index.topk(queries, 4, only=only)[0][0].tolist()) == {7, 51, -1}
    assert not {3, 50} & set(index.topk(queries, 100)[0][0].tolist())
    assert index.topk(queries, 1, only=np.zeros(0, np.int64))[0].tolist() == [[-1]]
    banned = index.topk(queries, 118, exclude=[[0, 7]])[0][0].tolist()
    assert not {0, 3, 7, 50} & set(banned)


@pytest.mark.parametrize("engine", ["exact", "ivf"])
def test_a_refreshed_bank_is_searched_as_it_is_now(made, bank, engine) -> None:
    if engine == "ivf":
        pytest.importorskip("faiss")
    index, queries = KeyIndex(bank, engine=engine, recall=1.0), made.rows_for([130])[0]
    assert index.topk(queries, 1)[0].item() != 120
    with BankEditor(bank.folder) as editor:
        editor.append(*made.rows_for([130]))
        editor.commit("one more")
    bank.refresh()
    assert index.topk(queries, 1)[0].item() == 120


def test_wrong_settings_are_refused(bank) -> None:
    with pytest.raises(ConfigError, match="expected auto, exact or ivf"):
        KeyIndex(bank, engine="hnsw")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        KeyIndex(bank, recall=1.5)
