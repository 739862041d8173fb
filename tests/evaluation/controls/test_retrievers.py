"""Controls and rows: what is shown instead of memories, and the four rows side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.controls.comparison_rows import ROWS, evaluate_rows, with_control
from tinyalign.evaluation.controls.look_up import LOOK_UPS
from tinyalign.evaluation.controls.retrievers import ShuffledBank
from tinyalign.evaluation.results import read_results
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.memory.search.retriever import Exclusion

from ..conftest import World


def query(world: World, n: int = 4, **settings):
    features = torch.randn(n, 16, 32, generator=torch.Generator().manual_seed(0))
    return features, world.retriever.retrieve(features, **settings)


def test_every_key_of_a_shuffled_bank_finds_another_entrys_value(world: World):
    bank = world.retriever.bank
    control = ShuffledBank(world.retriever, seed=3)
    dealt = [control._cycle.next(row) for row in range(len(bank))]
    assert sorted(dealt) == list(range(len(bank)))
    assert all(at != row for row, at in enumerate(dealt))
    assert dealt != [ShuffledBank(world.retriever, seed=4)._cycle.next(r) for r in range(12)]


def test_shuffled_memories_keep_the_searchs_scores_and_carry_their_own_ids(world: World):
    features, true = query(world)
    shown = ShuffledBank(world.retriever).retrieve(features)
    assert torch.equal(shown.scores, true.scores)
    assert torch.equal(shown.mask, true.mask)
    bank = world.retriever.bank
    for row, (ids, searched) in enumerate(zip(shown.ids, true.ids)):
        assert len(set(ids)) == len(searched)
        assert all(one != other for one, other in zip(ids, searched))
        for slot, name in enumerate(ids):
            [at] = bank.rows_of([name])
            assert torch.equal(shown.values[row, slot], bank.gather([at])[0])


def test_a_shuffled_bank_shows_nothing_that_is_excluded(world: World):
    bank = world.retriever.bank
    hashes = bank.image_hashes
    exclude = [Exclusion(tuple(bank.ids[:5]), tuple(hashes[5:8]))] * 3
    features, _ = query(world, 3)
    for seed in range(20):
        shown = ShuffledBank(world.retriever, seed).retrieve(features, exclude=exclude)
        for ids in shown.ids:
            assert len(set(ids)) == 2
            assert not {bank.rows_of([name])[0] for name in ids} & set(range(8))


def test_a_bank_of_one_cannot_be_shuffled(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(world.retriever.bank), "__len__", lambda self: 1)
    with pytest.raises(EvaluationError, match="two to be shuffled"):
        ShuffledBank(world.retriever)


def test_the_four_rows_are_the_four_single_runs(world: World, questions, tmp_path: Path):
    settings = {"task": "vqa", "max_new_tokens": 4, "batch_size": 4}
    rows = evaluate_rows(
        world.model, world.processor, questions,
        retriever=world.retriever, out=tmp_path, **settings,
    )  # fmt: skip
    assert tuple(rows) == (*ROWS, *LOOK_UPS)
    rows = {row: rows[row] for row in ROWS}
    modes = {row: found.results.settings["memory"] for row, found in rows.items()}
    assert modes == {"on": "on", "off": "off", "shuffled": "shuffled", "text-only": "off"}
    for row, found in rows.items():
        assert read_results(tmp_path / row) == found.results
        retriever = with_control(world.retriever, "off" if row == "text-only" else row)
        single = evaluate(
            world.model, world.processor, questions,
            retriever=retriever, show_image=row != "text-only", **settings,
        )  # fmt: skip
        assert single.results.metrics == found.results.metrics
    losses = {found.results.metrics["loss"].value for found in rows.values()}
    assert len(losses) == 4
    with pytest.raises(EvaluationError, match="need a bank"):
        evaluate_rows(
            world.model, world.processor, questions, retriever=None, out=tmp_path, task="vqa"
        )
    with pytest.raises(EvaluationError, match="name a folder"):
        evaluate_rows(
            world.model, world.processor, questions,
            retriever=world.retriever, out=tmp_path / "a.json", **settings,
        )  # fmt: skip
