"""Null is no text and no id, in every format; a list is no text either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyalign.data.readers import open_dataset
from tinyalign.data.readers.records import Reading
from tinyalign.data.readers.shards.parquet_shard import ParquetShard
from tinyalign.data.readers.text_field import id_of, text_of
from tinyalign.data.validate import validate
from tinyalign.errors import DataError


def test_null_is_empty_and_a_number_its_digits():
    assert [text_of(value, "here") for value in (None, "a", 3)] == ["", "a", "3"]


@pytest.mark.parametrize("value", [["a", "b"], {"type": "text"}])
def test_a_list_or_an_object_is_no_text(value):
    with pytest.raises(DataError, match="here: expected a text, found"):
        text_of(value, "here")


def test_an_id_that_is_null_counts_as_missing():
    assert [id_of(record, 7) for record in ({}, {"id": None}, {"id": 0})] == ["7", "7", "0"]


def test_a_conversation_with_nulls_has_no_text_none_and_is_listed(tmp_path: Path):
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": None}]
    file = tmp_path / "set.json"
    file.write_text(json.dumps([{"id": None, "conversations": turns}]))
    dataset = open_dataset(file)
    assert (dataset[0].id, dataset[0].answer) == ("0", "")
    assert validate(dataset).counts["empty_conversation"] == 1


@pytest.mark.parametrize(
    "column",
    [
        {"qa": [[{"question": "Who?", "answer": None}, {"question": "Who?", "answer": "A dog"}]]},
        {"captions": [[None, "A dog"]]},
    ],
)
def test_rows_with_nulls_have_no_text_none_in_a_table_and_in_a_shard(tmp_path: Path, column):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"id": pa.array([None], pa.string()), "image": ["a.png"], **column}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    dataset = open_dataset(tmp_path / "set.parquet", captions="all")
    shard = ParquetShard(str(tmp_path / "set.parquet"), "set", "made", Reading("all"))
    for samples in (list(dataset), next(shard.records()).samples):
        assert [sample.answer for sample in samples] == ["", "A dog"]
        assert not any("None" in sample.id for sample in samples)
    assert validate(dataset).counts["empty_conversation"] == 1


def test_questions_of_another_shape_are_named():
    import datasets

    table = datasets.Dataset.from_dict({"image": ["a.png"], "qa": [[{"q": "Who?", "a": "A dog"}]]})
    with pytest.raises(DataError, match=r"row 0.*expected 'qa' to be a list of question"):
        open_dataset(table)[0]
