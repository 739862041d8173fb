"""Verbs and options by the names that they had: they do what they did, and say the new name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.cli.front.app import VERBS
from tinyalign.cli.front.old_names import OPTIONS, SPELLINGS, VALUES, with_new_names
from tinyalign.cli.front.old_names import VERBS as OLD_VERBS


def renamed(verb: str, *words: str) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return with_new_names(verb, list(words), said.append), said


def test_an_old_verb_runs_as_the_new_one(run) -> None:
    code, page, said = run("compress", "train", "--help")
    assert code == 0
    assert page.startswith("usage: tinyalign perceiver train")
    assert "tinyalign compress train is now called tinyalign perceiver train" in said
    assert set(OLD_VERBS.values()) <= VERBS.keys()
    assert not OLD_VERBS.keys() & VERBS.keys()


@pytest.mark.parametrize("words", [["--compressor", "p"], ["--compressor=p"]])
def test_an_old_option_is_the_new_one(words: list[str]) -> None:
    found, said = renamed("bank build", *words, "--out", "compressor")
    assert found == [*(" ".join(words).replace("compressor", "perceiver").split()), "--out",
                     "compressor"]  # fmt: skip
    assert said == [
        "--compressor is now called --perceiver; the old name still works, and will go in "
        "version 1.0"
    ]


@pytest.mark.parametrize("words", [["--memory", "shuffled"], ["--memory=shuffled"]])
def test_a_control_was_a_value_of_memory(words: list[str]) -> None:
    found, [said] = renamed("evaluate", "--rows", "all", *words, "--k", "2")
    assert found == ["--rows", "all", "--control", "shuffled", "--k", "2"]
    assert said.startswith("--memory shuffled is now called --control shuffled")


def test_what_is_called_so_today_is_left_alone() -> None:
    words = ["--memory", "off", "--model", "shuffled", "--bank=--compressor"]
    assert renamed("evaluate", *words) == (words, [])
    assert renamed("ask", "--compressor", "p") == (["--compressor", "p"], [])


def test_the_package_and_the_benchmark_are_spelled_alike() -> None:
    assert renamed("evaluate", "--task", "easy-vqa") == (["--task", "easy_vqa"], [])


def test_every_rule_is_of_a_verb_that_there_is() -> None:
    assert {verb for verb, *_ in (*OPTIONS, *VALUES, *SPELLINGS)} <= VERBS.keys()


@pytest.mark.parametrize("verb", ["add", "remove", "compact"])
def test_a_runs_bank_is_not_changed_and_the_error_says_what_to_do(
    run, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "memory.json").write_text('{"bank": "somewhere"}')
    (tmp_path / "x.png").touch()
    words = {"add": ["--image", tmp_path / "x.png", "--text", "a"], "remove": ["--id", "a"]}
    code, _, errors = run("bank", verb, tmp_path, *words.get(verb, []))
    assert code == 2
    assert f"`tinyalign bank merge {tmp_path} --out BANK`" in errors
