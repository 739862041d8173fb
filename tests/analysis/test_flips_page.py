"""The page of flips: whole, self-contained, and safe whatever a model says."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tinyalign.analysis.flips_page import SIDE, flips_page
from tinyalign.analysis.image_lookup import find_images
from tinyalign.evaluation.comparison import compare_runs
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import Prediction, Results
from tinyalign.evaluation.running.inputs import image_id
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.sources import open_source

from ..cli.conftest import make_pairs

NASTY = "</td><script>alert(1)</script> & \"quotes\" 'q' <img src=x onerror=y>"
VOID = {"meta", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """Tags as they open and close, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def predictions(right: list[int], said: str = "yes", **settings) -> list[Prediction]:
    return [
        Prediction(
            f"q{i}", f"i{i}", "Is it?", said, ("yes", "yeah"), 1.0, 1,
            scores={"accuracy": float(hit)}, **settings,
        )
        for i, hit in enumerate(right)
    ]  # fmt: skip


def results(name: str, **settings) -> Results:
    return Results("vqa", 2, {"accuracy": Interval(0, 0, 1)}, name, None, 0, {}, settings)


def page_of(a: list[Prediction], b: list[Prediction], images=None, **settings) -> Page:
    found = compare_runs(a, b, "accuracy")
    text = flips_page(found, results("model-a"), results("model-b"), images or {}, **settings)
    page = Page(text)
    assert page.open == []
    return page


def test_every_flip_shows_question_references_answers_memories_and_image(photo: Image.Image):
    a = predictions([1, 1, 0], memory_ids=("m7", "m9"), memory_scores=(0.91, 0.5), category="kind")
    b = predictions([0, 1, 1], said="no")
    large = photo.resize((1600, 900))
    texts = {"m7": "a red dog"}, {}
    page = page_of(a, b, {"i0": large}, memories=texts, differs=["bank None -> x"])
    assert len(page.named("article")) == 2  # the second sample is the same on both sides
    [image] = page.named("img")
    kind, _, data = str(image["src"]).partition(",")
    assert kind == "data:image/jpeg;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    assert decoded.format == "JPEG"
    assert max(decoded.size) == SIDE
    for text in ("model-a", "Is it?", "yes \u00b7 yeah", "no", "m7", "0.910", "a red dog", "m9",
                 "kind", "image not found", "bank None -> x", "By category"):  # fmt: skip
        assert text in page.text, text


def test_the_page_loads_nothing_and_runs_nothing(photo: Image.Image):
    page = page_of(predictions([1]), predictions([0]), {"i0": photo})
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert str(attributes.get(name, "data:")).startswith("data:")


def test_whatever_is_said_stays_text():
    a = predictions([1], said=NASTY, memory_ids=(NASTY,), memory_scores=(1.0,), category=NASTY)
    a = [dataclasses.replace(p, instruction=NASTY, references=(NASTY,), id=NASTY) for p in a]
    b = [dataclasses.replace(p, scores={"accuracy": 0.0}) for p in a]
    page = page_of(a, b, memories=({NASTY: NASTY}, {}), differs=[NASTY])
    assert page.named("script") == page.named("img") == []
    assert page.text.count("alert(1)") >= 8


def test_a_lower_loss_is_better_and_a_lower_accuracy_is_worse():
    a, b = predictions([0]), predictions([1])
    assert "A \u2212 B: -1.0000, A is worse" in page_of(a, b).text
    b = [dataclasses.replace(p, loss_sum=2.0) for p in b]
    page = Page(flips_page(compare_runs(a, b, "loss"), results("a"), results("b"), {}))
    assert "A \u2212 B: -1.0000, A is better" in page.text


def test_runs_without_a_difference_say_so():
    page = page_of(predictions([1, 0]), predictions([1, 0]))
    assert "do not differ on any sample" in page.text
    assert page.named("article") == []


def test_no_number_is_written_raw(photo: Image.Image):
    text = flips_page(
        compare_runs(predictions([1, 0, 0]), predictions([0, 0, 0]), "accuracy"),
        results("a"), results("b"), {},
    )  # fmt: skip
    assert not re.search(r"\d\.\d{7}", text)


# ------------------------------------------------------------------------------- finding the images


def test_images_are_found_as_files_or_in_their_data_set(tmp_path: Path, caplog):
    path = make_pairs(tmp_path / "pairs", 3)
    source = DataSource(path=str(path))
    samples = open_source(source, 0)
    ids = [image_id(sample) for sample in samples]
    assert [image.size for image in find_images(ids).values()] == [(32, 24)] * 3
    assert find_images([*ids[:1], "gone"]).keys() == {ids[0]}
    assert "1 of 2 images not found" in caplog.text


def test_images_inside_a_table_are_found_by_their_hash(tmp_path: Path, photo: Image.Image):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = []
    for i in range(3):
        buffer = io.BytesIO()
        photo.resize((20 + i, 20)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "caption": f"no. {i}"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    data = {"path": str(tmp_path / "t.parquet")}
    ids = [image_id(sample) for sample in open_source(DataSource(**data), 0)]
    found = find_images(ids[1:], data)
    assert [found[i].width for i in ids[1:]] == [21, 22]
    assert find_images(ids, {"path": str(tmp_path / "gone.parquet")}) == {}
