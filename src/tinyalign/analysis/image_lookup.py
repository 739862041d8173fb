"""The images that predictions are about: files by their path, others from the data set again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tinyalign.data.images import load_image
from tinyalign.data.sample import ImageRef
from tinyalign.errors import TinyAlignError
from tinyalign.evaluation.running.inputs import image_id
from tinyalign.log import logger
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.sources import open_source


def find_images(
    ids: Iterable[str], data: Mapping[str, Any] | None = None
) -> dict[str, Image.Image]:
    """Images by `Prediction.image_id`; those that cannot be had are left out, with a warning.

    data: the fields of the `DataSource` that was evaluated; without it only files are found.
    """
    wanted = dict.fromkeys(ids)
    refs = {i: ImageRef(path=i) for i in wanted if Path(i).is_file()}
    rest = wanted.keys() - refs.keys()
    if rest and data:
        try:
            refs |= _from_source(rest, DataSource(**data))
        except (TinyAlignError, TypeError) as error:
            logger.warning("%s: cannot be read for its images (%s)", data.get("path"), error)
    found = {}
    for name, ref in refs.items():
        try:
            found[name] = load_image(ref)
        except TinyAlignError as error:
            logger.warning("%s", error)
    if len(found) < len(wanted):
        logger.warning(
            "%d of %d images not found; name the data set they come from with --data",
            len(wanted) - len(found), len(wanted),
        )  # fmt: skip
    return found


def _from_source(ids: Iterable[str], source: DataSource) -> dict[str, ImageRef]:
    """Read on until all are found."""
    left, found = set(ids), {}
    samples = open_source(source, seed=0)
    for index in range(len(samples)):
        if not left:
            break
        sample = samples[index]
        name = image_id(sample) if sample.images else None
        if name in left:
            found[name] = sample.images[0]
            left.discard(name)
    return found
