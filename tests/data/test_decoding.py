"""Images come back in order, in batches, with any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tinyalign.data.decoding import DecodedImages, in_batches
from tinyalign.data.images import MissingImageError
from tinyalign.data.sample import ImageRef, Sample


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Five samples of one picture each, the third of which is gone."""
    refs = [ImageRef(path=str(tmp_path / f"{i}.png")) for i in range(5)]
    for i, ref in enumerate(refs):
        Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(ref.name)
    (tmp_path / "2.png").unlink()
    return [Sample(str(i), (ref,), ()) for i, ref in enumerate(refs)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_in_order_and_name_what_cannot_be_read(workers: int, samples) -> None:
    items = DecodedImages(samples, [(4, 0), (0, 0), (2, 0), (1, 0), (3, 0)])
    batches = list(in_batches(items, range(5), 2, workers))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    found = [one for batch in batches for one in batch]
    assert isinstance(found[2], MissingImageError)
    assert "2.png" in str(found[2])
    seen = [one.getpixel((0, 0))[0] for one in found if isinstance(one, Image.Image)]
    assert seen == [40, 0, 10, 30]


def test_reading_draws_no_random_number(samples) -> None:
    before = torch.get_rng_state()
    list(in_batches(DecodedImages(samples, [(0, 0)]), range(1), 1, 0))
    assert torch.equal(torch.get_rng_state(), before)
