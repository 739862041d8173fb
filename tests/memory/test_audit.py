"""The audit finds what was planted, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyalign.data.images import image_hash
from tinyalign.data.sample import ImageRef, Message
from tinyalign.errors import BankError, ConfigError, DataError
from tinyalign.memory.audit import audit, audit_samples
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.changes import remove_entries
from tinyalign.memory.perceiver import Perceiver
from tinyalign.memory.search.index import EXACT_UP_TO, KeyIndex

from .conftest import make_perceiver, make_sample, png


def strangers(count: int):
    """Samples whose pictures, ids and texts the bank has not."""
    return [
        replace(
            make_sample(i, 500 + i),
            id=f"new{i}",
            messages=(Message("user", "Who is this?"), Message("assistant", f"nobody {i}")),
        )
        for i in range(count)
    ]


def test_a_perceiver_that_was_replaced_is_no_auditor(bank, samples, vision, tmp_path) -> None:
    copy = MemoryBank.open(shutil.copytree(bank.folder, tmp_path / "copy"))
    own = Perceiver.load(copy.perceiver_folder)
    Perceiver(make_perceiver(seed=1), own.tokenizer, own.key_function).save(copy.perceiver_folder)
    with pytest.raises(BankError, match="it was replaced"):
        audit_samples(copy, samples, vision)


def test_a_bank_knows_all_of_its_own_samples(bank, samples, vision) -> None:
    found = audit_samples(bank, samples, vision, batch_size=5, k=3)
    assert (found.samples, found.same_image, found.same_id) == (12, 12, 12)
    # s9, s10 and s11 show the pictures of s0, s1 and s2: an own entry is first for all.
    assert (found.self_hits, found.self_hits_at_k) == (12, 12)
    assert found.same_text == 0
    first = found.found[0]
    assert (first.id, first.same_image, first.same_id, first.own_rank) == (
        "s0", ("s0", "s9"), ("s0",), 1,
    )  # fmt: skip


def test_strangers_are_strangers(bank, vision) -> None:
    found = audit_samples(bank, strangers(4), vision, near=1.0)
    assert (found.same_image, found.same_id, found.self_hits, found.same_text) == (0, 0, 0, 0)
    assert found.found == ()


def test_each_kind_of_overlap_is_told_apart(bank, samples, vision) -> None:
    new = strangers(5)
    new[0] = replace(new[0], images=samples[4].images)
    new[1] = replace(new[1], id="s5")
    new[2] = replace(new[2], id="s5", source="elsewhere")
    said = samples[6].messages[1].text
    new[3] = replace(new[3], messages=(samples[6].messages[0], Message("assistant", f" {said}\n")))
    found = audit_samples(bank, new, vision, near=1.0)
    assert (found.same_image, found.same_id, found.same_text, found.near) == (1, 1, 1, 0)
    seen = {one.id: one for one in found.found}
    assert seen["new0"].same_image == ("s4",)
    assert seen["s5"].same_id == ("s5",)
    assert seen["new3"].same_text == ("s6",)
    assert len(found.found) == 3


def test_near_keys_are_those_above_the_threshold(bank) -> None:
    keys = torch.from_numpy(bank.keys).float()
    scores = keys @ keys[4]
    scores[4] = -1  # its own entry is no near-duplicate
    second = float(scores.max())
    arguments = {"ids": ["s4"], "image_hashes": [""], "keys": keys[4:5]}
    above = audit(bank, **arguments, near=second - 1e-4)
    assert above.near == 1
    assert above.found[0].near[0] == (bank.ids[int(scores.argmax())], pytest.approx(second))
    assert audit(bank, **arguments, near=second + 1e-4).near == 0


def test_ids_and_hashes_alone_are_enough(bank, samples) -> None:
    hashes = [image_hash(sample.images[0]) for sample in samples[:2]]
    found = audit(bank, ["s0", "x", "y"], [*hashes, ""])
    assert (found.same_image, found.same_id) == (2, 1)
    assert (found.self_hits, found.near, found.same_text) == (None, None, None)
    assert found.summary() == (
        "3 samples, 12 entries: 2 with an image in the bank, 1 with an id in it"
    )


def test_removed_entries_are_not_known(bank, samples, vision, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bank.folder, tmp_path / "bank")
    smaller = remove_entries(tmp_path / "bank", ids=["s3"]).bank
    found = audit_samples(smaller, samples[3:5], vision)
    assert (found.same_image, found.same_id, found.self_hits, found.entries) == (1, 1, 1, 11)
    assert [one.id for one in found.found if one.same_id] == ["s4"]


def test_unusable_samples_are_listed_or_stop_it(bank, samples, vision, tmp_path: Path) -> None:
    bad = replace(samples[0], id="bad", images=(ImageRef(path=str(tmp_path / "gone.png")),))
    found = audit_samples(bank, [bad, samples[1]], vision)
    assert (found.samples, [name for name, _ in found.skipped]) == (1, ["bad"])
    with pytest.raises(DataError, match=r"gone\.png"):
        audit_samples(bank, [samples[1], bad], vision, strict=True)
    with pytest.raises(BankError, match="none of 1 samples"):
        audit_samples(bank, [bad], vision)


def test_an_audit_is_exact_whatever_the_bank_s_size(bank, samples, vision, monkeypatch) -> None:
    expected = audit_samples(bank, samples, vision)
    monkeypatch.setitem(EXACT_UP_TO, "cpu", 0)
    monkeypatch.setattr(KeyIndex, "_ivf", None)
    assert audit_samples(bank, samples, vision) == expected


def test_workers_change_nothing(bank, samples, vision) -> None:
    two = audit_samples(bank, samples, vision, workers=2, batch_size=5)
    assert two == audit_samples(bank, samples, vision, batch_size=5)


def test_lengths_and_ranges_are_checked(bank) -> None:
    with pytest.raises(ConfigError, match="2 ids but 1 image hashes"):
        audit(bank, ["a", "b"], [""])
    with pytest.raises(ConfigError, match="k must be at least 1"):
        audit(bank, ["a"], [""], k=0)
    with pytest.raises(ConfigError, match=r"near within -1\.\.1"):
        audit(bank, ["a"], [""], near=98)


def test_png_fixture_pictures_differ() -> None:
    """The tests above lean on it."""
    assert png(4) != png(504)
