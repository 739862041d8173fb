"""A folder whose files are named for splits gives those of one, on a disk and at a URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.data.readers import open_dataset, open_stream
from tinyalign.data.readers.shards.shard import find_shards
from tinyalign.data.readers.splits import files_of_split
from tinyalign.errors import DataError


def test_files_of_one_split_or_all_where_none_is_named_for_one():
    files = ["d/train-00000-of-00001.parquet", "d/test.parquet", "d/README.parquet"]
    assert files_of_split("d", files, "test") == ["d/test.parquet"]
    assert files_of_split("d", ["d/0.tar", "d/1.tar"], "test") == ["d/0.tar", "d/1.tar"]
    with pytest.raises(DataError, match=r"split 'dev', found \['train-0.*; choose another split"):
        files_of_split("d", files, "dev")


@pytest.fixture
def remote(tmp_path: Path, parquet):
    """A folder as on the hub, in fsspec's file system in memory."""
    import fsspec

    files = fsspec.filesystem("memory")
    for split, numbers in (("train", range(4)), ("test", range(2))):
        local = parquet(tmp_path / f"{split}.parquet", numbers)
        files.pipe(f"/owner/name/data/{split}-00000-of-00001.parquet", local.read_bytes())
    yield "memory://owner/name"
    files.rm("/owner", recursive=True)


def test_the_folder_of_a_url_gives_one_split(remote: str):
    assert len(open_dataset(remote)) == 4
    assert len(list(open_stream(remote, split="test", epochs=1))) == 2
    with pytest.raises(DataError, match="split 'dev'"):
        open_dataset(remote, split="dev")


def test_a_glob_says_itself_which_files(remote: str):
    assert len(find_shards(f"{remote}/data/*.parquet", "train")) == 2


def test_a_hub_data_set_that_cannot_be_reached_is_a_data_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf://datasets/owner/name: can't be listed"):
        open_dataset("hf://datasets/owner/name")
