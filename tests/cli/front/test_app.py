"""Help, parsing and errors of the command line, as a user meets them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tinyalign.cli.front.app import VERBS
from tinyalign.cli.front.options import arguments_class, field_docs, parse
from tinyalign.training.recipe.data import RECIPE_ONLY

from ..conftest import make_pairs

# --------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_every_option_is_and_its_default(run, verb: str):
    code, page, errors = run(*verb.split(), "--help")
    assert (code, errors) == (0, "")
    cls = arguments_class(VERBS[verb].load())
    docs = field_docs(cls)
    letters = re.sub(r"[\s-]", "", page)  # wrapped lines aside
    for name, field in cls.__dataclass_fields__.items():
        assert docs.get(name), f"{cls.__name__}.{name} has no docstring"
        if name != "overrides" and field.metadata != RECIPE_ONLY:
            assert re.sub(r"[\s-]", "", docs[name]) in letters
            assert field.metadata or f"--{name.replace('_', '-')}" in page
    for option in re.split(r"^  (?=--)", page.partition("options:")[2], flags=re.MULTILINE)[1:]:
        no_value = re.search(r"\.help\s|configuration file", option)
        assert no_value or re.search(r"default:\s|\(required", option), option


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_reports_does_so_as_json_too(verb: str):
    assert "json" in arguments_class(VERBS[verb].load()).__dataclass_fields__


def test_training_help_lists_the_recipes_fields_with_their_meaning(run):
    _, page, _ = run("train", "--help")
    assert "--pretrain.learning-rate" in page
    assert "Peak learning rate." in page
    assert page.index("usage: tinyalign train --config CONFIG [options]") == 0


def test_the_overview_lists_every_verb(run):
    code, page, _ = run("--help")
    assert code == 0
    for verb, facts in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(facts.summary)}$", page, re.MULTILINE)
    code, page, _ = run("bank", "--help")
    assert code == 0
    assert "bank search" in page
    assert "evaluate" not in page


@pytest.mark.parametrize("words", [[], ["bank"], ["fly"], ["bank", "fly"], ["fly", "--help"]])
def test_no_verb_is_an_error_that_shows_the_verbs(run, words: list[str]):
    code, out, errors = run(*words)
    assert (code, out) == (2, "")
    assert "bank search" in errors
    assert ("there is no" in errors) == ("fly" in words)


def test_a_misspelt_verb_gets_a_suggestion(run):
    assert "Did you mean `tinyalign evaluate`?" in run("evalute", "--model", "x")[2]


def test_version(run):
    import tinyalign

    assert run("--version")[:2] == (0, f"tinyalign {tinyalign.__version__}\n")


@pytest.mark.slow  # a process of its own
def test_python_m_is_a_door_too():
    command = [sys.executable, "-m", "tinyalign", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("tinyalign ")


# ------------------------------------------------------------------------------------------ parsing


def evaluate_args(*words: str):
    needed = ("--model=m", "--task=vqa", "--data=d", "--out=o")
    return parse(VERBS["evaluate"].load(), "tinyalign evaluate", [*needed, *words])


def test_options_may_be_written_with_underscores_and_values_keep_theirs():
    args = evaluate_args("--batch_size=3", "--image_folder", "a_b")
    assert (args.batch_size, args.image_folder, args.path) == (3, "a_b", "d")


def test_wrong_types_and_choices_are_refused_by_name(run):
    for words in (["--batch-size", "many"], ["--task", "poetry"], ["--strikt"], ["--see", "1"]):
        words = ["evaluate", "--model=m", "--task=vqa", "--data=d", "--out=o", *words]
        code, _, errors = run(*words)
        assert code == 2
        assert next(word for word in words[::-1] if word != "1") in errors


def test_training_takes_recipe_fields_anywhere_among_its_own():
    words = ["--seed", "3", "--config", "r", "--pretrain.epochs=2", "--k", "0", "--no-resume"]
    args = parse(VERBS["train"].load(), "tinyalign train", words)
    assert (args.config, args.k, args.resume) == ("r", 0, False)
    assert args.overrides == ["--seed", "3", "--pretrain.epochs=2"]


# ------------------------------------------------------------------------------------------- errors


def test_errors_are_one_line_and_exit_code_2(run, tmp_path: Path, photo: Image.Image):
    photo.save(tmp_path / "photo.png")
    image, gone = tmp_path / "photo.png", tmp_path / "gone"
    pairs = make_pairs(tmp_path / "pairs", 2)
    judged = ("--task=caption", f"--data={pairs}", f"--out={tmp_path / 'out'}")
    commands = {
        gone: [
            ("ask", "what?", "--model", gone, "--image", image),
            ("ask", "what?", "--model", gone, "--image", gone),
            ("evaluate", "--model", gone, *judged),
            ("evaluate", "--model", "m", "--task=vqa", "--data", gone, "--out", tmp_path / "o"),
            ("bank", "info", gone),
            ("bank", "search", gone, "--text", "a dog"),
            ("bank", "build", "--data", pairs, "--perceiver", gone, "--out", tmp_path / "b"),
            ("perceiver", "train", "--data", gone, "--out", tmp_path / "c"),
            ("data", "validate", gone),
            ("train", "--config", gone),
        ],
        "--text": [("bank", "search", gone)],
        "--bank": [
            ("ask", "what?", "--model", gone, "--image", image, "--show-memories"),
            ("evaluate", "--model", gone, *judged, "--control", "random"),
        ],
        "minutes": [("quickstart", "--minutes", "-1")],
    }
    for named, those in commands.items():
        for words in those:
            code, out, errors = run(*words)
            assert (code, out) == (2, ""), words
            assert errors.startswith("error: "), words
            assert errors.count("\n") == 1, errors
            assert str(named) in errors


def test_the_traceback_comes_on_request(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINYALIGN_DEBUG", "1")
    code, _, errors = run("bank", "info", tmp_path)
    assert code == 2
    assert "Traceback" in errors
    assert "BankError" in errors


def test_stopping_is_no_success(run, monkeypatch: pytest.MonkeyPatch):
    def stopped(args):
        raise KeyboardInterrupt

    stopped.__annotations__ = {"args": arguments_class(VERBS["recipes list"].load())}
    monkeypatch.setattr("tinyalign.cli.train.recipes_list", stopped)
    code, _, errors = run("recipes", "list")
    assert code == 130
    assert "same command again" in errors


def test_a_folder_that_is_no_model_of_ours_is_named(run, tmp_path, tiny_llm_dir, photo):
    photo.save(tmp_path / "photo.png")
    words = ("ask", "what?", "--image", tmp_path / "photo.png", "--model")
    assert "'llama' model, expected 'tinyalign'" in run(*words, tiny_llm_dir)[2]
    (tmp_path / "config.json").write_text("{")
    assert "config.json: not a model's config" in run(*words, tmp_path)[2]


def test_evaluations_do_not_overwrite_each_others_predictions(run, tmp_path: Path):
    (tmp_path / "predictions.jsonl").touch()
    pairs = make_pairs(tmp_path / "pairs", 2)
    words = ("--model=m", "--task=caption", f"--data={pairs}", f"--out={tmp_path / 'b.json'}")
    code, _, errors = run("evaluate", *words)
    assert code == 2
    assert "predictions.jsonl: belongs to another evaluation" in errors
