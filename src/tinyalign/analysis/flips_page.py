"""A comparison as one HTML page: the numbers, and the samples on which two runs differ most.

The page stands alone: images are small JPEGs within it, there is no script and nothing to load.
Its text is `templates/flips.html`, where whatever a model or a data set says is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from tinyalign.evaluation.comparison import LOSS, Comparison, Flip
from tinyalign.evaluation.results import Prediction, Results

SIDE = 280  # pixels of an image's longer side at most
QUALITY = 80


def flips_page(
    comparison: Comparison,
    a: Results,
    b: Results,
    images: Mapping[str, Image.Image],
    *,
    differs: Sequence[str] = (),
    memories: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> str:
    """The page as text.

    images: by image id, for those that could be found. differs: settings in which the runs
    differ. memories: texts of bank entries by id, of A's bank and of B's, beside the ids.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("tinyalign.analysis"), autoescape=True, undefined=StrictUndefined
    )
    return pages.get_template("flips.html").render(
        title=f"{a.task}: {comparison.metric} of two runs",
        side=SIDE,
        found=comparison,
        runs=[
            ("A", a.model, _memory(a), comparison.a),
            ("B", b.model, _memory(b), comparison.b),
            ("A − B", "", "", comparison.difference),
        ],
        differs=differs,
        flips=[
            _shown(flip, comparison.lower_is_better, images, memories) for flip in comparison.flips
        ],
    )


def _memory(results: Results) -> str:
    memory = str(results.settings.get("memory", "on" if results.bank else "off"))
    image = results.settings.get("image", "shown")
    return memory if image == "shown" else f"{memory}, image {image}"


def _shown(
    flip: Flip,
    lower_is_better: bool,
    images: Mapping[str, Image.Image],
    memories: tuple[Mapping[str, str], Mapping[str, str]],
) -> dict[str, Any]:
    """What the template says of a flip."""
    sample = flip.a
    return {
        "id": sample.id,
        "picture": _picture(images.get(sample.image_id)),
        "category": sample.category,
        "question": sample.instruction or "(no instruction)",
        "references": list(dict.fromkeys(sample.references)),
        "difference": flip.difference,
        "good": "better" if (flip.difference > 0) != lower_is_better else "worse",
        "a": _answer(flip.a, memories[0]),
        "b": _answer(flip.b, memories[1]),
    }


def _answer(prediction: Prediction, texts: Mapping[str, str]) -> dict[str, Any]:
    retrieved = zip(prediction.memory_ids, prediction.memory_scores)
    return {
        "text": prediction.prediction,
        "scores": list(_scores(prediction)),
        "memories": [(name, score, texts.get(name, "")) for name, score in retrieved],
    }


def _scores(prediction: Prediction) -> Iterator[str]:
    for key, value in prediction.scores.items():
        yield f"{key} {value:.3g}"
    if prediction.supervised_tokens:
        yield f"{LOSS} {prediction.loss_sum / prediction.supervised_tokens:.3g}"


def _picture(image: Image.Image | None) -> dict[str, Any] | None:
    """Size and JPEG bytes in base64 of a small copy."""
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"width": small.width, "height": small.height, "data": data}
