"""`tinyalign compare` on results files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import Prediction, Results, write_results


def write(folder: Path, right: list[int], image: str = "i", task: str = "vqa", **settings) -> Path:
    """A run with these answers right, two an image."""
    made = [
        Prediction(
            f"q{i}", f"{image}{i // 2}", "what?", "a" if hit else "b", ("a",), 1.0, 1,
            scores={"accuracy": float(hit)}, category="even" if i % 2 == 0 else "odd",
        )
        for i, hit in enumerate(right)
    ]  # fmt: skip
    share = sum(right) / len(right)
    metrics = {"accuracy": Interval(share, 0, 1)}
    results = Results(task, len(right), metrics, folder.name, None, 0, {})
    write_results(folder, dataclasses.replace(results, **settings), made)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    a = write(tmp_path / "ours", [1] * 12 + [0] * 8, bank="bank", bank_hash="h")
    return a, write(tmp_path / "base", [0] * 9 + [1] * 4 + [0] * 7)


def test_it_says_difference_interval_tests_and_categories(run, two):
    code, out, _ = run("compare", *two)
    assert code == 0
    assert re.search(r"A  ours +│ +0\.6000", out)
    assert re.search(r"A - B +│ +0\.4000", out)
    assert "20 samples of 10 images; A is higher on 9, B on 1" in out
    assert "paired bootstrap over images: p = 0.0" in out
    assert "McNemar, exact, as if the 20 samples were of as many images: p = 0.021" in out
    assert "differs: bank None" not in out  # from A to B
    assert "differs: bank bank -> None" in out
    assert re.search(r"even +│ +10 │ +10 │", out)


def test_as_json_it_says_the_same(run, two):
    code, out, _ = run("compare", two[0] / "results.json", two[1], "--json")
    found = json.loads(out)
    assert code == 0
    assert found["p_mcnemar"] == pytest.approx(22 / 1024)
    assert found["difference"]["value"] == pytest.approx(0.4)
    assert [each["category"] for each in found["categories"]] == ["even", "odd"]
    assert len(found["flips"]) == 10
    assert json.loads(run("compare", *two, "--metric", "loss", "--json")[1])["metric"] == "loss"


def test_a_page_with_the_images(run, tmp_path: Path):
    for number in range(2):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"photo{number}", "PNG")
    a = write(tmp_path / "a", [1, 0, 1, 1], image=str(tmp_path / "photo"))
    b = write(tmp_path / "b", [1, 1, 0, 1], image=str(tmp_path / "photo"))
    for number in range(2):
        (tmp_path / f"photo{number}").rename(tmp_path / f"photo{number}.png")
    code, _, errors = run("compare", a, b, "--html", tmp_path / "page.html")
    assert code == 0
    assert "2 of 2 images not found" in errors
    for number in range(2):
        (tmp_path / f"photo{number}.png").rename(tmp_path / f"photo{number}")
    code, out, errors = run("compare", a, b, "--html", tmp_path / "page.html")
    assert (code, errors) == (0, "")
    assert f"page: {tmp_path / 'page.html'}" in out
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == page.count("<article") == 2


def test_folders_of_runs_are_compared_run_by_run_with_their_average(run, tmp_path: Path):
    for side, right in (("a", [1, 1, 1, 0]), ("b", [1, 0, 0, 0])):
        write(tmp_path / side / "gqa", right, task="gqa")
        write(tmp_path / side / "mine", right, task="vqa")
        pope = Interval(0.5 if side == "a" else 0.4, 0, 1)
        write(tmp_path / side / "pope", right, task="pope", metrics={"f1": pope})
    write(tmp_path / "a" / "only", [1], task="gqa")
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert re.findall(r"^│ (\w+) ", out, re.MULTILINE) == ["gqa", "mine", "pope"]
    assert "average of gqa, pope: A 62.50, B 32.50" in out
    assert "missing of the eight: mmmu, mm-vet, scienceqa, textvqa, vqav2, mme" in out
    found = json.loads(run("compare", tmp_path / "a", tmp_path / "b", "--json")[1])
    assert found["average"]["b"]["parts"] == pytest.approx({"gqa": 25, "pope": 40})
    assert run("compare", tmp_path / "a", tmp_path / "b", "--html", "x.html")[0] == 2


def test_what_cannot_be_compared_is_an_error_in_a_line(run, two, tmp_path: Path):
    captions = write(tmp_path / "captions", [1] * 20, task="caption")
    fewer = write(tmp_path / "fewer", [1] * 18)
    (tmp_path / "empty").mkdir()
    cases = {
        "different tasks": (two[0], captions),
        "same samples": (two[0], fewer),
        "no 'bleu4'": (*two, "--metric", "bleu4"),
        "not a results file": (two[0], tmp_path / "gone"),
        "expected a results.json in each": (tmp_path / "gone", tmp_path / "empty"),
    }
    for said, words in cases.items():
        code, out, errors = run("compare", *words)
        assert (code, out, errors.count("\n")) == (2, "", 1), words
        assert said in errors
