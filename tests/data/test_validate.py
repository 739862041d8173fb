"""Validation finds what training would stumble over, and lists it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tinyalign.data.readers import open_dataset, open_stream
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.data.validate import KINDS, validate

GOOD = (Message("user", "Who?"), Message("assistant", "A dog."))


@pytest.fixture
def good_image(photo, tmp_path):
    photo.save(tmp_path / "good.png")
    return ImageRef(path=str(tmp_path / "good.png"))


def kinds(report) -> list[tuple[str, str]]:
    return [(problem.kind, problem.id) for problem in report.problems]


def test_a_clean_set_has_no_problems(good_image):
    report = validate([Sample(str(i), (good_image,), GOOD) for i in range(3)])
    assert report.ok
    assert report.n == 3
    assert set(report.counts) == set(KINDS)


def test_each_bad_image_is_listed_once_a_sample(good_image, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(b"\xff\xd8\xff\xe0 no more")
    missing = ImageRef(path=str(tmp_path / "nowhere.png"))
    report = validate(
        [
            Sample("a", (missing,), GOOD),
            Sample("b", (missing, good_image), GOOD),
            Sample("c", (ImageRef(path=str(cut)),), GOOD),
        ]
    )
    assert kinds(report) == [("missing_image", "a"), ("missing_image", "b"), ("corrupt_image", "c")]
    assert "nowhere.png" in report.problems[0].detail


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ((), "empty_conversation"),
        ((Message("user", "Who?"),), "empty_conversation"),
        ((Message("user", "Who?"), Message("assistant", "  ")), "empty_conversation"),
        (GOOD[::-1], "odd_conversation"),
        ((*GOOD, Message("user", "And?")), "odd_conversation"),
        ((GOOD[0], *GOOD), "odd_conversation"),
        ((Message("user", ""), GOOD[1]), "odd_conversation"),
    ],
)
def test_empty_and_odd_conversations(messages, kind):
    assert kinds(validate([Sample("s", (), messages)])) == [(kind, "s")]


def test_a_plain_caption_and_a_system_turn_are_not_odd(good_image):
    caption = (Message("user", ""), Message("assistant", "A dog."))
    assert validate([Sample("s", (good_image,), caption)]).ok
    assert validate([Sample("s", (), (Message("system", "Be brief."), *GOOD))]).ok


def test_duplicate_ids_and_over_long_texts(make_tokenizer):
    long = (Message("user", "Who?"), Message("assistant", "zq " * 50))
    samples = [Sample("a", (), GOOD), Sample("a", (), long)]
    found = kinds(validate(samples, make_tokenizer(), max_length=40))
    assert found == [("duplicate_id", "a"), ("over_long", "a")]


def test_records_that_can_not_be_read_do_not_stop_it(tmp_path):
    file = tmp_path / "set.jsonl"
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A dog."}]
    file.write_text(json.dumps({"id": "x"}) + "\n" + json.dumps({"conversations": turns}))
    assert kinds(validate(open_dataset(file))) == [("unreadable", "#0")]


def test_broken_lines_stand_beside_the_other_problems(tmp_path):
    good = json.dumps({"conversations": [{"from": "human", "value": "Who?"}]})
    (tmp_path / "set.jsonl").write_text(f"{good}\n{{\n{good}\n")
    report = validate(open_dataset(tmp_path / "set.jsonl", keep_unreadable=True))
    assert report.n == 3
    expected = [("empty_conversation", "0"), ("unreadable", "#1"), ("empty_conversation", "2")]
    assert kinds(report) == expected
    assert "set.jsonl, line 2" in report.problems[1].detail


@pytest.mark.parametrize(("tags", "images"), [(2, 1), (1, 0), (1, 2)])
def test_tags_that_do_not_match_the_images_are_odd(good_image, tags, images):
    (problem,) = validate([Sample("s", (good_image,) * images, GOOD, image_tags=tags)]).problems
    assert problem.kind == "odd_conversation"
    assert problem.detail == f"<image> tags in its text: {tags}, images: {images}"


@pytest.mark.parametrize(("tags", "images"), [(0, 0), (0, 2), (1, 1), (2, 2)])
def test_as_many_tags_as_images_or_none_are_fine(good_image, tags, images):
    assert validate([Sample("s", (good_image,) * images, GOOD, image_tags=tags)]).ok


def test_the_table_and_the_dict_say_the_same():
    report = validate([Sample("[odd] id", (), ())])
    console = Console(file=io.StringIO(), width=160)
    console.print(report.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 samples, 1 problems" in shown
    assert "[odd] id" in shown
    as_dict = json.loads(json.dumps(report.as_dict()))
    assert as_dict["counts"]["empty_conversation"] == 1
    assert as_dict["problems"][0]["id"] == "[odd] id"
    assert as_dict["ok"] is False


@pytest.mark.parametrize("streaming", [True, False])
def test_broken_shards_are_problems(tmp_path, good_image, streaming):
    import tarfile

    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(good_image.path, f"{name}.png")
            tar.add(tmp_path / f"{name}.txt", f"{name}.txt")
            tar.add(good_image.path, f"{name}0.png")  # without a text
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:800])
    path = str(tmp_path / "*.tar")
    dataset = open_stream(path, buffer=0, epochs=1) if streaming else open_dataset(path)
    report = validate(dataset)
    assert report.n == 1
    found = [(kind, name.split("@")[0]) for kind, name in kinds(report)]
    assert found == [("broken_shard", "b.tar"), ("unreadable", "a.tar")]
