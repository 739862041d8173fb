"""Shards made on the spot: tars and parquet files of small pictures with their texts."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(number: int) -> bytes:
    """A PNG that only this number has."""
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_tar(path: Path, numbers: Sequence[int], *, as_json: bool = True, packed: bool = False):
    """A tar with a picture and a caption for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if packed else "w") as tar:
        for number in numbers:
            text = f"picture {number}"
            record = json.dumps({"id": f"id-{number}", "caption": text})
            suffix, words = ("json", record) if as_json else ("txt", text)
            for name, data in (
                (f"{number:05d}.png", picture(number)),
                (f"{number:05d}.{suffix}", words.encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def make_parquet(path: Path, numbers: Sequence[int], *, row_group: int = 5):
    """A parquet file with a picture and a caption a row, in row groups of `row_group`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"id-{number}",
            "image": {"bytes": picture(number), "path": f"{number}.png"},
            "caption": f"picture {number}",
        }
        for number in numbers
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group)
    return path


@pytest.fixture
def tar() -> Callable[..., Path]:
    """`tar(path, numbers, as_json=True, packed=False)`: a WebDataset shard."""
    return make_tar


@pytest.fixture
def parquet() -> Callable[..., Path]:
    """`parquet(path, numbers, row_group=5)`: a parquet shard."""
    return make_parquet


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Four tars of ten pairs each, 0 to 39, in a folder."""
    for shard in range(4):
        make_tar(tmp_path / "tars" / f"{shard:02d}.tar", range(10 * shard, 10 * shard + 10))
    return tmp_path / "tars"
