"""`tinyalign bank VERB` on a small bank, as a user meets it: reports, exit codes, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tinyalign.cli import main

from ..conftest import left_alone, make_pairs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_vision_dir: Path) -> Path:
    """A folder with pairs (p, more), and a bank of the 12 pairs in p."""
    folder = tmp_path_factory.mktemp("made")
    pairs = make_pairs(folder / "p", 12)
    make_pairs(folder / "more", 4, first=50)
    here = ("--vision", tiny_vision_dir, "--data", pairs, "--cache-folder", folder / "cache")
    few = ("--min-steps", 1, "--max-steps", 2, "--vocab-size", 300, "--held-out", 0.2)
    for words in (
        ("perceiver", "train", *here, *few, "--out", folder / "compressor"),
        ("bank", "build", *here, "--perceiver", folder / "compressor", "--out", folder / "bank"),
    ):
        with left_alone():
            assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture
def bank(made: Path, tmp_path: Path) -> Path:
    """A copy of the bank, to be changed."""
    shutil.copytree(made / "bank", tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def report(run):
    """`report("verb", ...)`: what it prints with --json; it must succeed."""

    def call(*words: object) -> dict:
        code, out, errors = run("bank", *words, "--json")
        assert code == 0, errors
        return json.loads(out)

    return call


def test_pairs_come_are_found_and_go(report, run, bank: Path, made: Path) -> None:
    added = report("add", bank, made / "more" / "pairs.json", "--source", "late")
    assert (added["added"], added["entries"], added["skipped"]) == (4, 16, [])
    image = made / "more" / "51.png"
    assert report("search", bank, "--image", image, "--k", 1)["found"][0]["id"] == "pair-51"
    only = report("search", bank, "--image", image, "--source", "pairs.json")["found"]
    assert {one["source"] for one in only} == {"pairs.json"}
    assert report("info", bank)["sources"] == {"late": 4, "pairs.json": 12}
    again = run("bank", "add", bank, made / "more" / "pairs.json")
    assert (again[0], "none of 4 samples could be added" in again[2]) == (2, True)
    assert report("remove", bank, "--source", "late")["removed"] == 4
    assert report("search", bank, "--image", image, "--k", 1)["found"][0]["id"] != "pair-51"
    commits = report("log", bank)["commits"]
    assert [(one["added"], one["removed"]) for one in commits] == [(12, 0), (4, 0), (0, 4)]
    before = report("info", bank)
    assert before["removed"] == 4
    freed = report("compact", bank)["freed_bytes"]
    after = report("info", bank)
    assert (after["bytes"], after["removed"]) == (before["bytes"] - freed, 0)
    assert report("verify", bank)["ok"]


def test_one_pair_is_added_replaced_and_removed(report, run, bank: Path, made: Path) -> None:
    pair = ("--image", made / "more" / "52.png", "--instruction", "Who is it?")
    report("add", bank, *pair, "--text", "Ada", "--id", "ada")
    found = report("search", bank, "--source", "added", *pair[:2])["found"]
    assert [(one["id"], one["text"]) for one in found] == [("ada", "Who is it? Ada")]
    changed = report("update", bank, *pair, "--text", "Bob", "--id", "ada")
    assert (changed["added"], changed["removed"], changed["entries"]) == (1, 1, 13)
    code, out, _ = run("bank", "remove", bank, "--id", "ada", "--id", "pair-3")
    assert code == 0
    assert "Who is it? Bob" in out
    assert "2 removed; 11 entries now" in out


def test_an_update_keeps_source_and_instruction_unless_others_are_given(
    report, bank: Path, made: Path
) -> None:
    image = ("--image", made / "more" / "52.png")
    asked = ("--instruction", "Who is it?", "--source", "pets")
    report("add", bank, *image, *asked, "--text", "Ada", "--id", "ada")
    report("update", bank, *image, "--text", "Bob", "--id", "ada")
    found = report("search", bank, *image, "--source", "pets")["found"]
    assert [(one["id"], one["text"]) for one in found] == [("ada", "Who is it? Bob")]
    report("update", bank, *image, "--text", "Bob", "--id", "ada", "--source", "people")
    assert report("info", bank)["sources"]["people"] == 1


def test_a_search_that_is_like_nothing_removes_nothing(report, run, bank: Path) -> None:
    search = ("bank", "remove", bank, "--text", "zzyzx", "--k", 3)
    code, _, errors = run(*search)
    assert (code, "no key is anything like this search" in errors) == (2, True)
    assert report("info", bank)["count"] == 12
    assert len(report(*search[1:], "--at-least", -1, "--dry-run")["listed"]) == 3


def test_a_search_removes_no_more_than_allowed(
    report, bank: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyalign.cli.bank.look.FIRST", 1)
    query = ("remove", bank, "--image", made / "p" / "7.png")
    dry = report(*query, "--at-least", 0.9999, "--dry-run")
    assert ([one["id"] for one in dry["listed"]], dry["removed"]) == (["pair-7"], 0)
    assert report("info", bank)["count"] == 12
    assert len(report(*query, "--k", 3, "--dry-run")["listed"]) == 3
    assert len(report(*query, "--at-least", -1, "--dry-run")["listed"]) == 12
    assert report(*query, "--k", 3, "--at-least", 0.9999)["removed"] == 1
    assert report(*query, "--at-least", 0.9999)["removed"] == 0


def test_a_bank_survives_export_merge_and_import(report, run, bank, tmp_path: Path) -> None:
    report("export", bank, "--out", tmp_path / "out")
    back = report("import", tmp_path / "out", "--out", tmp_path / "back")
    assert back["hash"] == report("info", bank)["hash"]
    both = ("bank", "merge", bank, tmp_path / "back", "--out", tmp_path / "merged")
    assert "pair-0" in run(*both)[2]
    merged = report(*both[1:], "--keep", "first")
    assert (merged["entries"], len(merged["skipped"])) == (12, 12)
    assert run(*both, "--keep", "first")[0] == 2  # there already
    assert "not empty" in run("bank", "export", bank, "--out", tmp_path / "out")[2]


def test_damage_is_neither_merged_nor_exported(run, bank: Path, tmp_path: Path) -> None:
    with open(bank / "values-1.i8", "r+b") as file:
        file.write(b"zz")
    for verb in ("merge", "export"):
        code, _, errors = run("bank", verb, bank, "--out", tmp_path / "out")
        assert (code, "values-1.i8: rows 0 to" in errors) == (2, True)
    assert list(tmp_path.iterdir()) == [bank]


def test_an_emptied_bank_is_not_said_to_be_off(report, run, bank: Path) -> None:
    assert "% off" in run("bank", "info", bank)[1]
    report("remove", bank, "--source", "pairs.json")
    report("compact", bank)
    assert "% off" not in run("bank", "info", bank)[1]


def test_verify_names_every_damage(run, bank: Path) -> None:
    assert "every byte is sound" in run("bank", "verify", bank)[1]
    for name in ("keys-1.f16", "values-1.i8"):
        with open(bank / name, "r+b") as file:
            file.write(b"zz")
    code, out, _ = run("bank", "verify", bank)
    assert (code, out.count("changed since")) == (1, 2)
    os.truncate(bank / "keys-1.f16", 3)
    code, out, _ = run("bank", "verify", bank, "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    for name in ("keys-1.f16: expected", "values-1.i8: rows 0 to"):
        assert sum(name in problem for problem in report["problems"]) == 1
    assert run("bank", "verify", bank / "nowhere")[0] == 2


def test_verify_names_a_damaged_index_and_a_search_makes_it_anew(run, report, bank: Path) -> None:
    pytest.importorskip("faiss")
    search = ("search", bank, "--text", "colour", "--engine", "ivf", "--recall", 0.9)
    found = report(*search)
    index = bank / "index" / "ivf-1.faiss"
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 0xFF
    index.write_bytes(content)
    code, out, _ = run("bank", "verify", bank, "--json")
    (problem,) = json.loads(out)["problems"]
    assert code == 1
    assert "ivf-1.faiss: expected hash" in problem
    assert "makes it anew" in problem
    assert report(*search) == found
    assert report("verify", bank)["ok"]


def test_an_audit_lists_what_the_bank_knows(report, run, bank, made: Path, tmp_path: Path) -> None:
    mixed = made / "p" / "pairs.json"
    found = report("audit", "--bank", bank, "--data", mixed, "--limit", 5)
    assert (found["samples"], found["same_image"], found["self_hits"]) == (5, 5, 5)
    out = tmp_path / "list.jsonl"
    words = ("bank", "audit", "--bank", bank, "--data", mixed, "--out", out)
    assert run(*words)[0] == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [
        f"pair-{i}" for i in range(12)
    ]
    code, _, errors = run(*words)
    assert (code, "exists already" in errors) == (2, True)
    new = report("audit", "--bank", bank, "--data", made / "more" / "pairs.json", "--near", 1)
    assert (new["same_image"], new["same_id"], new["self_hits"]) == (0, 0, 0)


REFUSED = {
    "nothing to add": ("add", "BANK"),
    "give one of them": ("add", "BANK", "DATA", "--image", "x.png"),
    "give both --image and --text": ("add", "BANK", "--image", "x.png"),
    "--instruction and --id are for one pair": ("add", "BANK", "DATA", "--id", "a"),
    "x.png": ("add", "BANK", "--image", "x.png", "--text", "a"),
    "give its --id": ("update", "BANK", "--image", "x.png", "--text", "a"),
    "nothing to remove": ("remove", "BANK"),
    "--id names entries": ("remove", "BANK", "--id", "a", "--text", "b"),
    "give --k, --at-least": ("remove", "BANK", "--text", "a"),
    "are for a search": ("remove", "BANK", "--id", "a", "--k", "2"),
    "no entry with the id nobody": ("remove", "BANK", "--id", "nobody"),
    "its sources are pairs.json": ("remove", "BANK", "--source", "elsewhere"),
    "no entry came from elsewhere": ("search", "BANK", "--text", "a", "--source", "elsewhere"),
    "recall is a share": ("search", "BANK", "--text", "a", "--recall", "3"),
    "--text is empty": ("add", "BANK", "--image", "x.png", "--text", " "),
    "--id is empty": ("remove", "BANK", "--id", ""),
    "--batch-size must be at least 1, found 0": ("add", "BANK", "DATA", "--batch-size", "0"),
    "--workers must be at least 0, found -1": ("add", "BANK", "DATA", "--workers=-1"),
    "--near is a cosine": ("audit", "--bank", "BANK", "--data", "DATA", "--near", "5"),
    "nowhere": ("merge", "BANK", "nowhere", "--out", "OUT"),
    "entries.parquet: not found": ("import", "BANK", "--out", "OUT"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(
    message: str, run, made: Path, tmp_path: Path
) -> None:
    stand = {"BANK": made / "bank", "DATA": made / "p" / "pairs.json", "OUT": tmp_path / "out"}
    code, out, errors = run("bank", *(stand.get(word, word) for word in REFUSED[message]))
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
