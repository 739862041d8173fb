"""Paths, globs and URLs name shards; both kinds of shards can be read from any record on."""

from __future__ import annotations

from itertools import islice

import pytest

from tinyalign.data.images import load_image
from tinyalign.data.readers.records import Reading
from tinyalign.data.readers.shards.parquet_shard import ParquetShard
from tinyalign.data.readers.shards.shard import find_shards, shard_names
from tinyalign.data.readers.shards.webdataset import TarShard, split_name
from tinyalign.errors import DataError


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet"])
def test_records_from_any_place_are_the_rest_of_all_records(kind, tmp_path, tar, parquet):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        shard = ParquetShard(str(parquet(path, range(12))), "a", "made", Reading())
    else:
        tar(path, range(12), packed=kind == "tar.gz")
        shard = TarShard(str(path), "a", "made", Reading())
    records = list(shard.records())
    assert [record.samples[0].answer for record in records] == [f"picture {n}" for n in range(12)]
    for number, record in enumerate(records):
        assert list(islice(shard.records(record.at), 20)) == records[number:]


def test_a_pair_is_an_image_with_its_text(tmp_path, tar):
    path = tar(tmp_path / "a.tar", [3, 4], as_json=False)
    first = next(TarShard(str(path), "a.tar", "made", Reading(prompt="Describe it.")).records())
    (sample,) = first.samples
    assert sample.id == "a.tar/00003"  # shard and key, where the record has no id of its own
    assert (sample.instruction, sample.answer) == ("Describe it.", "picture 3")
    assert load_image(sample.images[0]).size == (8, 8)


def test_names_split_at_the_first_dot():
    assert split_name("./part.1/007.left.JPG") == ("part.1/007", "left.jpg")
    assert split_name("part.1/") == ("part", "1")


def test_braces_are_written_out():
    assert find_shards("s3://b/{08..11}-{a,b}.tar")[:3] == [
        "s3://b/08-a.tar",
        "s3://b/08-b.tar",
        "s3://b/09-a.tar",
    ]
    assert len(find_shards(["https://h/{0..9}.parquet?v={1,2}"])) == 20


def test_globs_and_folders_give_shards_in_order_of_name(tars):
    names = [f"{n:02d}.tar" for n in range(4)]
    assert shard_names(find_shards(str(tars / "*.tar"))) == names
    assert shard_names(find_shards(str(tars))) == names
    (tars / "deep").mkdir()
    (tars / "03.tar").rename(tars / "deep" / "03.tar")
    assert shard_names(find_shards(str(tars)))[-1] == "deep/03.tar"


def test_what_names_no_shard_is_said(tmp_path, tars):
    with pytest.raises(DataError, match="expected shards ending in"):
        find_shards(str(tmp_path / "*.tar"))
    with pytest.raises(DataError, match="listed more than once"):
        shard_names(["a/1.tar", "a/1.tar"])
    with pytest.raises(DataError, match="kind of URL"):
        find_shards("nonsense://there/*.tar")


def test_a_record_that_is_no_sample_is_a_problem_with_its_place(tmp_path, parquet):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"image": {"bytes": b"1", "path": None}, "caption": "a"},
        {"image": None, "caption": "b"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    good, bad = ParquetShard(str(tmp_path / "a.parquet"), "a", "made", Reading()).records()
    assert good.problem is None
    assert "a, row 1: expected an image" in str(bad.problem)


def test_conversations_questions_and_captions_are_read_alike(tmp_path):
    from tinyalign.data.sample import ImageRef

    image = ImageRef(data=b"x")
    turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A dog."}]

    def read(fields, captions="first"):
        return Reading(captions).samples(fields, [image], row_id="r", source="s", where="w")

    assert read({"conversations": turns})[0].instruction == "Who?"
    asked = read({"qa": [{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "d"}]})
    assert [(one.id, one.instruction, one.answer) for one in asked] == [
        ("r#q0", "a?", "b"),
        ("r#q1", "c?", "d"),
    ]
    assert [one.id for one in read({"captions": ["a", "b"], "id": 5}, "all")] == ["5#0", "5#1"]
    with pytest.raises(DataError, match="w: expected one of"):
        read({"height": 3})
