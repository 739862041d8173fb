from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyalign.data.images import image_hash, load_image
from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.editor import BankEditor
from tinyalign.memory.search.cycle import Cycle
from tinyalign.memory.search.index import EXACT_UP_TO, KeyIndex
from tinyalign.memory.search.neighbours import NeighbourTable, data_hash


@pytest.fixture(scope="module")
def queries(samples, vision, perceiver) -> torch.Tensor:
    features = vision.encode([load_image(sample.images[0]) for sample in samples])
    return perceiver.keys(features, [sample.instruction for sample in samples])


@pytest.fixture(scope="module")
def names(samples) -> tuple[list[str], list[str]]:
    return [s.id for s in samples], [image_hash(s.images[0]) for s in samples]


@pytest.fixture(scope="module")
def table(bank, queries, names) -> NeighbourTable:
    return NeighbourTable.build(bank, queries, *names, k=5, block=5)


def assert_no_row_shows_itself(table: NeighbourTable, bank, names) -> None:
    for rows, name, image in zip(table.indices.tolist(), *names):
        rows = [row for row in rows if row >= 0]
        assert len(set(rows)) == len(rows)
        assert name not in [bank.ids[row] for row in rows]
        assert image not in [bank.image_hashes[row] for row in rows]


@pytest.mark.parametrize("k", [0, 1, 5, 10, 20])
def test_neither_search_nor_controls_ever_pick_the_own_entry_or_image(
    k, bank, queries, names
) -> None:
    """k = 20 is more than the bank has, so every row that is allowed must come."""
    table = NeighbourTable.build(bank, queries, *names, k=k)
    controls = ("random", "shuffled", "another_sample")
    for version in (table, *(table.under(name, seed) for name in controls for seed in (0, 1))):
        assert_no_row_shows_itself(version, bank, names)
        assert torch.equal(version.mask, table.mask)
        assert torch.equal(version.scores, table.scores)
    allowed = [12 - len(rows) for rows in table.excluded]
    assert table.mask.sum(dim=1).tolist() == [min(k, n) for n in allowed]
    assert sorted(set(allowed)) == [10, 11]  # pairs of samples share three of the pictures


def test_a_table_is_exact_whatever_the_bank_s_size(bank, queries, names, monkeypatch) -> None:
    expected = NeighbourTable.build(bank, queries, *names, k=5)
    monkeypatch.setitem(EXACT_UP_TO, "cpu", 0)
    monkeypatch.setattr(KeyIndex, "_ivf", None)
    found = NeighbourTable.build(bank, queries, *names, k=5)
    assert torch.equal(found.indices, expected.indices)


def test_without_exclusion_everybody_finds_himself(bank, queries, names) -> None:
    table = NeighbourTable.build(bank, queries, *names, k=1, exclude_self=False)
    assert [bank.image_hashes[row] for row in table.indices[:, 0].tolist()] == names[1]


def test_the_table_is_the_exact_search(bank, queries, table) -> None:
    scores = queries.double() @ torch.from_numpy(bank.keys).double().T
    for b, rows in enumerate(table.excluded):
        scores[b, rows] = -torch.inf
    ordered = scores.float().sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(table.scores, ordered.values[:, :5])
    assert torch.equal(table.indices, ordered.indices[:, :5].int())
    assert table.indices.dtype == torch.int32


def test_controls_repeat_with_their_seed_and_differ_without(table) -> None:
    for control in (NeighbourTable.random, NeighbourTable.shuffled, NeighbourTable.another_sample):
        assert torch.equal(control(table, 3).indices, control(table, 3).indices)
        assert not torch.equal(control(table, 3).indices, control(table, 4).indices)
        assert not torch.equal(control(table, 3).indices, table.indices)


def test_random_neighbours_are_even_over_what_is_allowed(table) -> None:
    counts = torch.zeros(12)
    for seed in range(400):
        rows = table.random(seed).indices[4]
        counts[rows.long()] += 1
    assert counts[4] == 0
    expected = 400 * 5 / 11
    assert (counts[torch.arange(12) != 4] - expected).abs().max() < 5 * expected**0.5


def test_the_rows_of_another_sample(table) -> None:
    shuffled = table.another_sample(0)
    original = [set(rows) for rows in table.indices.tolist()]
    for i, (rows, banned) in enumerate(zip(shuffled.indices.tolist(), table.excluded)):
        others = [set(other) - set(banned) for j, other in enumerate(original) if j != i]
        assert any(other <= set(rows) for other in others)


def test_shuffled_values_are_dealt_as_evaluation_deals_them(table, bank) -> None:
    cycle = Cycle(bank.live, bank.rows, 5)
    shuffled = table.shuffled(5)
    for i, banned in enumerate(table.excluded):
        expected = [cycle.next(row, banned) for row in table.indices[i].tolist() if row >= 0]
        found = [row for row in shuffled.indices[i].tolist() if row >= 0]
        assert found == expected
        assert all(a != b for a, b in zip(found, table.indices[i].tolist()))


def test_a_cycle_passes_every_entry_once_and_skips_what_is_banned() -> None:
    live = np.array([0, 2, 3, 7])
    cycle, at, passed = Cycle(live, 9, 0), 0, []
    for _ in live:
        at = cycle.next(at)
        passed.append(at)
    assert sorted(passed) == live.tolist()
    assert passed[-1] == 0
    first = cycle.next(0)
    assert cycle.next(0, {first}) == cycle.next(first)


def test_saving_and_loading_changes_nothing(table, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "neighbours.safetensors"
    for version in (table, table.random(7)):
        version.save(path)
        again = NeighbourTable.load(path, bank_hash=table.bank_hash, data_hash=table.data_hash)
        assert torch.equal(again.indices, version.indices)
        assert torch.equal(again.scores, version.scores)
        assert again.excluded == version.excluded
        assert again.control == version.control
        assert torch.equal(again.random(1).indices, table.random(1).indices)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_others_may_read_a_table_as_any_new_file(table, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        table.save(tmp_path / "table.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "table.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_empty_table_can_be_saved(bank, queries, tmp_path: Path) -> None:
    table = NeighbourTable.build(bank, queries[:0], [], [], k=3)
    table.save(tmp_path / "t.safetensors")
    assert NeighbourTable.load(tmp_path / "t.safetensors").indices.shape == (0, 3)


def test_a_stale_table_is_refused(table, names, tmp_path: Path) -> None:
    path = tmp_path / "neighbours.safetensors"
    table.save(path)
    with pytest.raises(BankError, match=r"neighbours\.safetensors: made for another bank"):
        NeighbourTable.load(path, bank_hash="0" * 16)
    other = data_hash(names[0][::-1], names[1])
    with pytest.raises(BankError, match=r"neighbours\.safetensors: made for another data"):
        NeighbourTable.load(path, data_hash=other)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_damaged_table_is_refused_by_name(damage, table, tmp_path: Path) -> None:
    path = tmp_path / "neighbours.safetensors"
    table.save(path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "truncated" else b"hello")
    with pytest.raises(BankError, match=r"neighbours\.safetensors"):
        NeighbourTable.load(path)


def test_lists_of_different_lengths_are_refused(bank, queries, names) -> None:
    with pytest.raises(ConfigError, match="11 ids"):
        NeighbourTable.build(bank, queries, names[0][:-1], names[1], k=1)


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Searches as they are made, by the number of their queries; die at one of them."""
    real, calls = KeyIndex.topk, []

    def topk(self, queries, *arguments):
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(queries))
        return real(self, queries, *arguments)

    monkeypatch.setattr(KeyIndex, "topk", topk)
    return calls


def test_a_killed_search_goes_on_after_its_last_block(
    bank, queries, names, table, tmp_path, monkeypatch
) -> None:
    partial = tmp_path / "neighbours.partial"
    counted(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        NeighbourTable.build(bank, queries, *names, k=5, block=5, partial=partial)
    monkeypatch.undo()
    calls = counted(monkeypatch)
    again = NeighbourTable.build(bank, queries, *names, k=5, block=5, partial=partial)
    assert calls == [2]  # of 5 + 5 + 2
    assert torch.equal(again.indices, table.indices)
    assert torch.equal(again.scores, table.scores)
    assert not partial.exists()


def test_a_damaged_block_is_searched_again(
    bank, queries, names, table, tmp_path, monkeypatch
) -> None:
    partial = tmp_path / "neighbours.partial"
    counted(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        NeighbourTable.build(bank, queries, *names, k=5, block=5, partial=partial)
    monkeypatch.undo()
    first = next(partial.rglob("0.safetensors"))
    first.write_bytes(first.read_bytes()[:50])
    calls = counted(monkeypatch)
    again = NeighbourTable.build(bank, queries, *names, k=5, block=5, partial=partial)
    assert calls == [5, 2]
    assert torch.equal(again.indices, table.indices)


def test_blocks_for_other_queries_are_not_used_and_not_touched(
    bank, queries, names, tmp_path, monkeypatch
) -> None:
    partial = tmp_path / "partial"
    counted(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        NeighbourTable.build(bank, queries, *names, k=5, block=5, partial=partial)
    monkeypatch.undo()
    others = set(partial.rglob("*"))
    calls = counted(monkeypatch)
    other = NeighbourTable.build(bank, -queries, *names, k=5, block=5, partial=partial)
    assert calls == [5, 5, 2]
    assert torch.equal(other.indices, NeighbourTable.build(bank, -queries, *names, k=5).indices)
    assert set(partial.rglob("*")) == others


def test_removed_rows_are_drawn_by_nobody(bank, queries, names, tmp_path: Path) -> None:
    folder = shutil.copytree(bank.folder, tmp_path / "bank")
    with BankEditor(folder) as editor:
        editor.remove([1, 4, 9])
        editor.commit("three fewer")
    smaller = MemoryBank.open(folder)
    table = NeighbourTable.build(smaller, queries, *names, k=20)
    table.save(tmp_path / "table")
    for one in (table, NeighbourTable.load(tmp_path / "table")):
        for seed in range(5):
            for version in (one, one.random(seed), one.shuffled(seed), one.another_sample(seed)):
                assert not {1, 4, 9} & set(version.indices.flatten().tolist())
                assert_no_row_shows_itself(version, smaller, names)
