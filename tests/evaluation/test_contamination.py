"""What was in the bank or in the training data is found by content, said, and refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from tinyalign.data.sample import ImageRef
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.contamination import (
    Contamination,
    find_contamination,
    near_duplicates,
)
from tinyalign.evaluation.results import Prediction
from tinyalign.evaluation.running.runner import evaluate

from .conftest import World, make_sample, png


def test_pictures_in_the_bank_are_found_under_other_ids(world: World, questions):
    found = find_contamination(questions, bank=world.retriever.bank).bank
    assert (found.images, found.ids, found.seen, found.of) == (3, 0, 3, 9)
    assert found.examples == ("s0", "s1", "s2")
    assert found.share == pytest.approx(1 / 3)


def test_ids_in_the_bank_are_found_with_other_pictures(world: World):
    samples = [make_sample(i, picture=80 + i, name="bank") for i in (3, 20)]
    found = find_contamination(samples, bank=world.retriever.bank).bank
    assert (found.images, found.ids, found.examples) == (0, 1, ("bank3",))


def test_training_pictures_are_found_by_content_whatever_the_container(tmp_path: Path):
    path = tmp_path / "other-name.bmp"
    Image.open(io.BytesIO(png(5))).save(path)
    train = [dataclasses.replace(make_sample(1), images=(ImageRef(path=str(path)),))]
    judged = [make_sample(5), make_sample(1)]
    found = find_contamination(judged, train=train)
    assert found.bank is None
    assert found.train is not None
    assert (found.train.images, found.train.ids, found.train.examples) == (1, None, ("s5",))


def test_near_duplicates_are_counted_by_the_scores_of_the_search():
    def judged(*scores: float) -> Prediction:
        return Prediction("s", "i", "", "", (), 0.0, 0, memory_scores=scores)

    found = near_duplicates([judged(0.99, 0.4), judged(0.9, 0.8), judged()])
    assert found == "1 of 2 samples by key (another entry's is >= 0.98 similar)"
    assert near_duplicates([judged()]) == ""


def test_removed_entries_do_not_count(world: World, questions, monkeypatch):
    bank = world.retriever.bank
    row = bank.rows_of(["bank0"])
    monkeypatch.setattr(type(bank), "removed", property(lambda self: row))
    found = find_contamination(questions, bank=bank).bank
    assert found.examples == ("s1", "s2")


def test_pictures_that_cannot_be_read_are_listed(tmp_path: Path):
    gone = dataclasses.replace(make_sample(0), images=(ImageRef(path=str(tmp_path / "gone.png")),))
    found = find_contamination([gone, make_sample(1)], train=[gone, make_sample(1)])
    assert [(s.id, "gone.png" in s.reason) for s in found.unreadable] == [("s0", True)]
    assert found.train is not None
    assert found.train.images == 1


def test_hashes_of_files_are_remembered(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(3))
    sample = dataclasses.replace(make_sample(3), images=(ImageRef(path=str(path)),))
    first = find_contamination([sample], train=[sample], cache=tmp_path / "cache")

    def never(ref):
        raise AssertionError(f"{ref.name} is decoded again")

    monkeypatch.setattr("tinyalign.evaluation.contamination.image_hash", never)
    assert find_contamination([sample], train=[sample], cache=tmp_path / "cache") == first


def test_what_was_seen_is_refused_and_what_was_not_is_not(world: World, questions):
    bank = world.retriever.bank
    with pytest.raises(EvaluationError, match=r"3 of 9 samples by image.*such as s0, s1, s2"):
        find_contamination(questions, bank=bank).refuse()
    find_contamination(questions[3:], bank=bank).refuse()
    Contamination().refuse()


def test_every_results_file_of_a_run_with_a_bank_says_it(world: World, questions):
    found = evaluate(
        world.model,
        world.processor,
        questions,
        task="vqa",
        retriever=world.retriever,
        max_new_tokens=0,
    ).results
    assert found.contamination["bank"]["images"] == 3
    assert found.contamination["train"] is None
    assert Contamination.from_dict(found.contamination) == find_contamination(
        questions, bank=world.retriever.bank
    )
