"""A comparison as one HTML page: the numbers, and the samples on which two runs differ most.

The page stands alone: images are small JPEGs within it, there is no script and nothing to load.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from tinyalign.evaluation.comparison import LOSS, Comparison, Flip
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import Prediction, Results

SIDE = 280  # pixels of an image's longer side at most
QUALITY = 80

STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --better: #1a7f37;
        --worse: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h3 { margin: 0; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
td { overflow-wrap: anywhere; }
th, td.number, td.quiet { overflow-wrap: normal; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
article { display: flex; flex-wrap: wrap; gap: 1.2rem; border-top: 1px solid var(--line);
          padding: 1.2rem 0; }
article > figure { margin: 0; width: 280px; }
article > div { flex: 1 1 24rem; min-width: 0; }
img { max-width: 280px; height: auto; display: block; }
.none { width: 280px; height: 120px; border: 1px dashed var(--line); display: grid;
        place-items: center; color: var(--quiet); }
.quiet { color: var(--quiet); }
.better { color: var(--better); } .worse { color: var(--worse); }
"""


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
    title = f"{a.task}: {comparison.metric} of two runs"
    flips = "\n".join(
        _flip(f"flip-{number}", flip, comparison.lower_is_better, images, memories)
        for number, flip in enumerate(comparison.flips, 1)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_summary(comparison, a, b)}
{_differs(differs)}
{_categories(comparison)}
<h2>{_heading(comparison)}</h2>
{flips}
</body>
</html>
"""


def _summary(found: Comparison, a: Results, b: Results) -> str:
    rows = [
        ("A", a.model, _memory(a), found.a),
        ("B", b.model, _memory(b), found.b),
        ("A &minus; B", "", "", found.difference),
    ]
    lines = "\n".join(
        f"<tr><th>{name}</th><td>{escape(model)}</td><td>{escape(memory)}</td>"
        f'<td class="number">{value.value:.4f}</td><td class="number">{_range(value)}</td></tr>'
        for name, model, memory, value in rows
    )
    lower = " (lower is better)" if found.lower_is_better else ""
    return f"""<table>
<tr><th></th><th>model</th><th>memory</th>
<th class="number">{escape(found.metric)}{lower}</th><th class="number">95 %</th></tr>
{lines}
</table>
<p>{found.n} samples of {found.images} images. A is higher on {found.only_a_higher}, B on
{found.only_b_higher}. Test of no difference: {escape(found.p_line)}.</p>"""


def _memory(results: Results) -> str:
    memory = str(results.settings.get("memory", "on" if results.bank else "off"))
    image = results.settings.get("image", "shown")
    return memory if image == "shown" else f"{memory}, image {image}"


def _differs(differs: Sequence[str]) -> str:
    if not differs:
        return ""
    items = "".join(f"<li>{escape(each)}</li>" for each in differs)
    summary = f"<summary>The runs differ in {len(differs)} settings</summary>"
    return f"<details>{summary}<ul>{items}</ul></details>"


def _categories(found: Comparison) -> str:
    if not found.categories:
        return ""
    lines = "\n".join(
        f'<tr><td>{escape(c.category)}</td><td class="number">{c.n}</td>'
        f'<td class="number">{c.a:.4f}</td><td class="number">{c.b:.4f}</td>'
        f'<td class="number">{c.difference.value:+.4f}</td>'
        f'<td class="number">{_range(c.difference)}</td></tr>'
        for c in found.categories
    )
    names = ("samples", "A", "B", "A &minus; B", "95 %")
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    return f"<h2>By category</h2>\n<table>\n<tr><th>category</th>{head}</tr>\n{lines}\n</table>"


def _heading(found: Comparison) -> str:
    if not found.flips:
        return "The runs do not differ on any sample"
    return f"The {len(found.flips)} largest differences"


def _flip(
    anchor: str,
    flip: Flip,
    lower_is_better: bool,
    images: Mapping[str, Image.Image],
    memories: tuple[Mapping[str, str], Mapping[str, str]],
) -> str:
    a, b = flip.a, flip.b
    question = a.instruction or "(no instruction)"
    references = " &middot; ".join(escape(each) for each in dict.fromkeys(a.references))
    category = f" &middot; {escape(a.category)}" if a.category else ""
    good = "better" if (flip.difference > 0) != lower_is_better else "worse"
    return f"""<article id="{anchor}">
<figure>{_picture(images.get(a.image_id), a.id)}
<figcaption class="quiet">{escape(a.id)}{category}</figcaption></figure>
<div>
<h3>{escape(question)}</h3>
<table>
<tr><th>reference</th><td colspan="2">{references}</td></tr>
{_said("A", a)}
{_said("B", b)}
</table>
<p class="{good}">A &minus; B: {flip.difference:+.4f}, A is {good}</p>
{_memories("A", a, memories[0])}
{_memories("B", b, memories[1])}
</div>
</article>"""


def _said(name: str, prediction: Prediction) -> str:
    scores = [f"{escape(key)} {value:.3g}" for key, value in prediction.scores.items()]
    if prediction.supervised_tokens:
        loss = prediction.loss_sum / prediction.supervised_tokens
        scores.append(f"{LOSS} {loss:.3g}")
    said = escape(prediction.prediction) or "(nothing)"
    return f'<tr><th>{name}</th><td>{said}</td><td class="quiet">{", ".join(scores)}</td></tr>'


def _memories(name: str, prediction: Prediction, texts: Mapping[str, str]) -> str:
    if not prediction.memory_ids:
        return ""
    items = "".join(
        f"<li>{escape(i)} <span class='quiet'>{score:.3f}</span> {escape(texts.get(i, ''))}</li>"
        for i, score in zip(prediction.memory_ids, prediction.memory_scores)
    )
    return f"<p>{name} retrieved</p>\n<ol>{items}</ol>"


def _picture(image: Image.Image | None, name: str) -> str:
    if image is None:
        return '<div class="none">image not found</div>'
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img {size} alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'


def _range(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"
