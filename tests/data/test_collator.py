"""Items of different length become one batch; what doesn't fit together is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.data.collator import Collator, PackedCollator
from tinyalign.errors import DataError


def item(ids: list[int], labels: list[int] | None = None, **extra):
    return {"input_ids": ids, "labels": labels or [-100] * len(ids), **extra}


@given(
    rows=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=5),
    side=st.sampled_from(["right", "left"]),
)
def test_what_the_mask_shows_is_what_went_in(rows, side):
    batch = Collator(pad_token_id=0, padding_side=side)([item(row, row) for row in rows])
    for i, row in enumerate(rows):
        shown = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][shown].tolist() == row
        assert batch["labels"][i][shown].tolist() == row
        assert (batch["labels"][i][~shown] == -100).all()
        assert (batch["input_ids"][i][~shown] == 0).all()


def test_padding_side():
    items = [item([5, 6]), item([7])]
    assert Collator(9)(items)["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert Collator(9, padding_side="left")(items)["input_ids"].tolist() == [[5, 6], [9, 7]]


def test_supervised_positions_are_those_the_shifted_loss_sees():
    items = [item([1, 2, 3], [1, -100, 3]), item([4], [4])]
    assert Collator(0)(items)["n_supervised"].tolist() == [1, 0]


def test_tensors_arrays_and_numbers_are_stacked_and_ids_listed():
    def one(n: int):
        values = torch.full((2, 32, 96), float(n))
        mask = np.array([True, False])
        return item([n], memory_values=values, memory_mask=mask, weight=0.5, id=f"s{n}")

    batch = Collator(0)([one(1), one(2)])
    assert batch["memory_values"].shape == (2, 2, 32, 96)
    assert batch["memory_mask"].dtype == torch.bool
    assert batch["weight"].tolist() == [0.5, 0.5]
    assert batch["id"] == ["s1", "s2"]


def test_image_rows_are_counted_by_image_not_by_sample():
    picture = torch.zeros(3, 4, 4)
    items = [item([1], pixel_values=picture), item([2]), item([3], pixel_values=[picture] * 2)]
    assert Collator(0)(items)["pixel_values"].shape == (3, 3, 4, 4)


def test_different_shapes_are_refused_with_the_key():
    items = [item([1], memory_values=torch.zeros(n, 32, 96)) for n in (1, 2)]
    with pytest.raises(DataError, match=r"memory_values.*different shapes"):
        Collator(0)(items)


def test_a_key_that_only_some_have_is_refused():
    with pytest.raises(DataError, match="'memory_values' in 1 of 2"):
        Collator(0)([item([1], memory_values=torch.zeros(1)), item([2])])


def test_labels_of_another_length_are_refused():
    with pytest.raises(DataError, match="one label a token"):
        Collator(0)([item([1, 2], [1, 2, 3])])


def test_an_empty_batch_is_refused():
    with pytest.raises(DataError, match="at least one item"):
        Collator(0)([])


@given(rows=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_packed_row_holds_every_token_once_and_segments_find_them(rows):
    batch = PackedCollator(pad_token_id=0)([item(row, row) for row in rows])
    flat = [token for row in rows for token in row]
    assert batch["input_ids"].tolist() == [flat]
    assert batch["position_ids"].tolist() == [[i for row in rows for i in range(len(row))]]
    for i, row in enumerate(rows):
        places = batch["segments"][i][: len(row)]
        assert batch["input_ids"][0][places].tolist() == row
        assert batch["labels"][0][places].tolist() == [-100, *row[1:]]
        assert (batch["segments"][i][len(row) :] == -1).all()
    assert batch["n_supervised"].tolist() == [len(row) - 1 for row in rows]
    assert "attention_mask" not in batch


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=9), multiple=st.integers(2, 20))
def test_a_row_filled_up_to_a_multiple_is_the_same_row_with_padding_in_its_shortest_sample(
    lengths, multiple
):
    rows = [[i + 1] * length for i, length in enumerate(lengths)]
    items = [item(row, row) for row in rows]
    batch = PackedCollator(pad_token_id=0, multiple=multiple)(items)
    missing = -sum(lengths) % multiple
    allowed = missing <= 0.03 * sum(lengths)
    assert batch["n_padding"] == (missing if allowed else 0)
    assert batch["input_ids"].shape[1] == sum(lengths) + batch["n_padding"]
    grown = lengths.index(min(lengths))
    for i, row in enumerate(rows):
        extra = [0] * (batch["n_padding"] if i == grown else 0)
        places = batch["segments"][i][batch["segments"][i] >= 0]
        assert batch["input_ids"][0][places].tolist() == [*row, *extra]
        assert batch["position_ids"][0][places].tolist() == [*range(len(row)), *extra]
        assert batch["labels"][0][places].tolist() == [-100, *row[1:], *[-100] * len(extra)]
    assert batch["n_supervised"].tolist() == [length - 1 for length in lengths]


def test_a_multiple_below_one_is_refused():
    with pytest.raises(DataError, match="at least 1, found 0"):
        PackedCollator(0, multiple=0)


def test_packed_items_of_other_shapes_are_refused():
    with pytest.raises(DataError, match="2 labels for 3 tokens"):
        PackedCollator(0)([item([1, 2], [1]), item([1], [1])])
    with pytest.raises(DataError, match="no attention_mask"):
        PackedCollator(0)([item([1], attention_mask=[1])])
