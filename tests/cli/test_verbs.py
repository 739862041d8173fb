"""What single verbs report: `data validate`, `recipes`, `quickstart`."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from .conftest import make_pairs

# ------------------------------------------------------------------------------------ data validate


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Three good pairs, a missing image, a truncated one, and an id that comes twice."""
    path = make_pairs(tmp_path / "broken", 6)
    records = json.loads(path.read_text())
    (path.parent / "3.png").unlink()
    whole = (path.parent / "4.png").read_bytes()
    (path.parent / "4.png").write_bytes(whole[: len(whole) // 2])
    records[5]["id"] = "pair-0"
    path.write_text(json.dumps(records))
    return path


def test_validate_names_the_damage_and_fails_only_with_strict(run, broken: Path):
    code, out, _ = run("data", "validate", broken)
    assert code == 0
    for kind, name in [("missing", "pair-3"), ("corrupt", "pair-4"), ("duplicate", "pair-0")]:
        assert re.search(rf"^{kind}_\w+  {name}: ", out, re.MULTILINE), out
    assert "6 samples, 3 problems" in out
    assert run("data", "validate", broken, "--strict")[0] == 1


def test_validate_goes_on_behind_a_broken_line(run, tmp_path: Path):
    (tmp_path / "set.csv").write_text("image,caption\na.png,one\nb.png\n")
    code, out, _ = run("data", "validate", tmp_path / "set.csv")
    assert code == 0
    assert "2 samples, 2 problems" in out
    assert re.search(r"^unreadable  #1: .*line 3", out, re.MULTILINE), out


def test_validate_as_json(run, broken: Path):
    code, out, _ = run("data", "validate", broken, "--json", "--strict")
    assert code == 1
    report = json.loads(out)
    assert (report["n"], report["ok"]) == (6, False)
    assert report["counts"]["missing_image"] == 1
    assert "3.png" in next(p["detail"] for p in report["problems"] if p["id"] == "pair-3")


@pytest.mark.parametrize("words", [["--streaming"], []])
def test_validate_reads_tars_and_names_broken_ones(run, tmp_path: Path, words: list[str]):
    make_pairs(tmp_path / "pairs", 3)
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for image in sorted((tmp_path / "pairs").glob("*.png")):
                (tmp_path / "caption").write_text("a picture")
                tar.add(image, image.name)
                tar.add(tmp_path / "caption", f"{image.stem}.txt")
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 8])
    code, out, _ = run("data", "validate", tmp_path / "*.tar", "--json", "--strict", *words)
    found = json.loads(out)
    assert code == 1
    assert found["counts"]["broken_shard"] == 1
    assert 3 <= found["n"] < 6


def test_validate_measures_lengths_with_a_tokenizer(run, tmp_path: Path, tiny_llm_dir: Path):
    pairs = make_pairs(tmp_path / "pairs", 3)
    assert run("data", "validate", pairs, "--strict")[0] == 0
    words = ("--tokenizer", tiny_llm_dir, "--max-length", 5, "--strict", "--json")
    code, out, _ = run("data", "validate", pairs, *words)
    assert code == 1
    assert json.loads(out)["counts"]["over_long"] == 3


def test_validate_spells_out_no_more_than_asked(run, broken: Path):
    out = run("data", "validate", broken, "--show", 1)[1]
    assert "and 2 more" in out
    assert "pair-4:" not in out


# --------------------------------------------------------------------------- recipes and quickstart


@pytest.mark.slow
def test_shipped_recipes_are_listed_and_shown(run):
    from tinyalign.training.recipe.files import shipped_recipes

    code, out, _ = run("recipes", "list", "--json")
    assert code == 0
    assert [each["name"] for each in json.loads(out)] == shipped_recipes()
    name = shipped_recipes()[-1]
    assert name in run("recipes", "list")[1]
    written = yaml.safe_load(run("recipes", "show", name)[1])
    resolved = yaml.safe_load(run("recipes", "show", name, "--resolved")[1])
    assert written["model"].items() <= resolved["model"].items()
    assert len(resolved["pretrain"]) > len(written.get("pretrain", {}))
    assert json.loads(run("recipes", "show", name, "--json")[1]) == resolved


def test_quickstart_passes_its_options_on(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[dict] = []

    def stand_in(**options: object) -> Path:
        calls.append(options)
        (tmp_path / "summary.json").write_text('{"arms": {"baseline": 0.5}}')
        return tmp_path

    module = ModuleType("tinyalign.quickstart")
    module.run, module.SUMMARY = stand_in, "summary.json"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinyalign.quickstart", module)
    words = ("--out", tmp_path, "--minutes", "2.5", "--seed", "1", "--device", "cpu")
    assert run("quickstart", *words)[:2] == (0, "")
    code, out, _ = run("quickstart", *words, "--json")
    assert (code, json.loads(out)) == (0, {"arms": {"baseline": 0.5}})
    asked = {"out": tmp_path, "minutes": 2.5, "seed": 1, "device": "cpu"}
    assert calls == [{**asked, "tell": True}, {**asked, "tell": False}]


def test_shipped_launch_configurations_are_listed_and_found(run):
    code, out, _ = run("recipes", "launch", "--json")
    assert code == 0
    listed = {each["name"]: each for each in json.loads(out)}
    assert set(listed) == {"ddp", "fsdp2", "zero2", "zero3"}
    for name, each in listed.items():
        assert each["about"]
        assert run("recipes", "launch", name)[1] == f"{each['path']}\n"
        assert Path(each["path"]).is_file()
    code, _, errors = run("recipes", "launch", "ddp3")
    assert code == 2
    assert "there are ddp, fsdp2, zero2, zero3" in errors
