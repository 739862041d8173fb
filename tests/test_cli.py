"""The command line as a user meets it: help, errors, exit codes, and one run from end to end."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from tinyalign.cli import main
from tinyalign.cli.app import VERBS
from tinyalign.cli.options import arguments_class, field_docs, parse

REPORTING = sorted(set(VERBS) - {"quickstart"})
WORDS = ["red", "green", "blue", "grey"]


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command line sets up logging and silences others for good; tests must not notice."""
    from transformers.utils import logging as theirs

    log = logging.getLogger("tinyalign")
    before = log.level, log.propagate, [*log.handlers], theirs.get_verbosity()
    monkeypatch.setenv("TINYALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYALIGN_DEBUG", raising=False)
    with warnings.catch_warnings():
        yield
    log.level, log.propagate, log.handlers = before[:3]
    theirs.set_verbosity(before[3])
    theirs.enable_progress_bar()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """`run("verb", ...)`: (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def make_pairs(folder: Path, n: int, *, first: int = 0) -> Path:
    """A LLaVA file of n captions of n different pictures."""
    folder.mkdir(parents=True)
    records = []
    for i in range(first, first + n):
        pixels = np.random.default_rng(i).integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 24)).save(folder / f"{i}.png")
        turns = [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": f"A {WORDS[i % 4]} dog, number {i}, in the park."},
        ]
        records.append({"id": f"pair-{i}", "image": f"{i}.png", "conversations": turns})
    path = folder / "pairs.json"
    path.write_text(json.dumps(records))
    return path


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_every_option_is_and_its_default(run, verb: str):
    code, page, errors = run(*verb.split(), "--help")
    assert (code, errors) == (0, "")
    cls = arguments_class(VERBS[verb].load())
    docs = field_docs(cls)
    letters = re.sub(r"[\s-]", "", page)  # wrapped lines aside
    for name, field in cls.__dataclass_fields__.items():
        assert docs.get(name), f"{cls.__name__}.{name} has no docstring"
        if name != "overrides":
            assert re.sub(r"[\s-]", "", docs[name]) in letters
            assert field.metadata or f"--{name.replace('_', '-')}" in page
    for option in re.split(r"^  (?=--)", page.partition("options:")[2], flags=re.MULTILINE)[1:]:
        no_value = re.search(r"\.help\s|configuration file", option)
        assert no_value or re.search(r"default:\s|\(required", option), option


@pytest.mark.parametrize("verb", REPORTING)
def test_every_verb_that_reports_does_so_as_json_too(verb: str):
    assert "json" in arguments_class(VERBS[verb].load()).__dataclass_fields__


def test_training_help_lists_the_recipes_fields_with_their_meaning(run):
    _, page, _ = run("train", "--help")
    assert "--pretrain.learning_rate" in page
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


def test_python_m_is_a_door_too():
    command = [sys.executable, "-m", "tinyalign", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("tinyalign ")


# --------------------------------------------------------------------------------------- parsing


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


# ---------------------------------------------------------------------------------------- errors


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
            ("bank", "build", "--data", pairs, "--compressor", gone, "--out", tmp_path / "b"),
            ("compress", "train", "--data", gone, "--out", tmp_path / "c"),
            ("data", "validate", gone),
            ("train", "--config", gone),
        ],
        "--text": [("bank", "search", gone)],
        "--bank": [
            ("ask", "what?", "--model", gone, "--image", image, "--show-memories"),
            ("evaluate", "--model", gone, *judged, "--random-memories"),
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


# ---------------------------------------------------------------------------------- data validate


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


def test_validate_as_json(run, broken: Path):
    code, out, _ = run("data", "validate", broken, "--json", "--strict")
    assert code == 1
    report = json.loads(out)
    assert (report["n"], report["ok"]) == (6, False)
    assert report["counts"]["missing_image"] == 1
    assert "3.png" in next(p["detail"] for p in report["problems"] if p["id"] == "pair-3")


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


# ----------------------------------------------------------------------- recipes and quickstart


def test_shipped_recipes_are_listed_and_shown(run):
    from tinyalign.training.recipe_files import shipped_recipes

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
    stand_in = ModuleType("tinyalign.quickstart")
    stand_in.run = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinyalign.quickstart", stand_in)
    words = ("--out", tmp_path, "--minutes", "2.5", "--seed", "1", "--device", "cpu")
    assert run("quickstart", *words)[0] == 0
    assert calls == [{"out": tmp_path, "minutes": 2.5, "seed": 1, "device": "cpu"}]


# -------------------------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_llm_dir: Path, tiny_vision_dir: Path):
    """A folder with pairs for training and for judging, and a recipe for tiny random models."""
    folder = tmp_path_factory.mktemp("workplace")
    pairs = make_pairs(folder / "train", 24)
    make_pairs(folder / "dev", 5, first=100)
    recipe = {
        "model": {
            "vision": str(tiny_vision_dir),
            "language": str(tiny_llm_dir),
            "template": "plain",
            "dtype": "float32",
        },
        "data": {
            "pretrain": {"path": str(pairs)},
            "pretrain_eval": {"path": str(folder / "dev" / "pairs.json")},
            "cache_folder": str(folder / "cache"),
            "cache_dtype": "float32",
        },
        "memory": {"k": 2, "bank": str(folder / "bank")},
        "pretrain": {"batch_size": 8, "max_steps": 2, "checkpoint_steps": None},
        "device": "cpu",
        "output": str(folder / "run"),
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_pairs_to_answers(run, workplace: Path, tiny_vision_dir: Path):
    """Each verb takes what the one before it left, and says so both in words and in JSON."""

    def report(*words: object) -> dict:
        code, out, errors = run(*words, "--json")
        assert code == 0, errors
        return json.loads(out)

    data = workplace / "train" / "pairs.json"
    here = ("--vision", tiny_vision_dir, "--data", data, "--cache-folder", workplace / "cache")
    compressor, bank = workplace / "compressor", workplace / "bank"
    few = ("--min-steps", 1, "--max-steps", 2, "--vocab-size", 300, "--batch-size", 8)
    code, out, _ = run("compress", "train", *here, "--out", compressor, *few, "--held-out", 0.2)
    assert code == 0
    assert re.search(r"text tokens read back +│ +\d+\.\d %", out)
    next_one = f"bank build --data {data} --vision {tiny_vision_dir} --compressor {compressor}"
    assert next_one in out
    assert "holds a compressor already" in run("compress", "train", *here, "--out", compressor)[2]

    built = report("bank", "build", *here, "--compressor", compressor, "--out", bank)
    assert (built["count"], built["skipped"]) == (24, [])
    again = report("bank", "build", *here, "--compressor", bank, "--out", bank)
    assert again["hash"] == built["hash"]
    info = report("bank", "info", bank, "--verify")
    assert (info["count"], info["vision_name"]) == (24, str(tiny_vision_dir))
    image = workplace / "train" / "7.png"
    found = report("bank", "search", bank, "--image", image, "--k", 3)["found"]
    assert [len(found), found[0]["id"]] == [3, "pair-7"]
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)
    assert "pair-7" in run("bank", "search", bank, "--image", image)[1]
    nothing = run("bank", "search", bank, "--text", "what colour?")  # captions: no instructions
    assert "no key is anything like this search" in " ".join(nothing[2].split())

    trained = report("train", "--config", workplace / "tiny.yaml")
    assert [stage["steps"] for stage in trained["stages"]] == [2]
    folder = Path(trained["folder"])
    assert folder == workplace / "run"
    assert {"config.yaml", "metrics.jsonl", "log.txt", "model"} <= {
        p.name for p in folder.iterdir()
    }
    baseline = report(
        "train", "--config", workplace / "tiny.yaml", "--k", 0, "--out", workplace / "baseline",
        "--pretrain.max_steps", 1,
    )  # fmt: skip
    assert (baseline["bank"], baseline["stages"][0]["steps"]) == (None, 1)

    check_evaluation(run, report, workplace, folder)
    check_asking(run, report, workplace, folder)


def check_evaluation(run, report, workplace: Path, folder: Path) -> None:
    dev, out = workplace / "dev" / "pairs.json", workplace / "judged" / "results.json"
    words = ("--task", "caption", "--data", dev, "--max-new-tokens", 4, "--batch-size", 2)
    printed = report("evaluate", "--model", folder, "--bank", folder, *words, "--out", out)
    results = json.loads(out.read_text())
    assert results == printed
    expected = {"task", "n", "metrics", "model", "bank", "seed", "versions"}
    assert expected <= results.keys()
    assert (results["task"], results["n"], results["seed"]) == ("caption", 5, 0)
    assert (results["model"], results["bank"]) == (str(folder), str(workplace / "bank"))
    assert results["metrics"].keys() == {"loss", "cider", "bleu4"}
    for metric in results["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
    predictions = (out.parent / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 5
    assert all(len(json.loads(line)["memory_ids"]) == 2 for line in predictions)
    trained_loss = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["eval_loss"]
    assert results["metrics"]["loss"]["value"] == pytest.approx(trained_loss, rel=1e-3)

    baseline = workplace / "baseline"
    code, text, _ = run("evaluate", "--model", baseline, *words, "--out", workplace / "judged-0")
    assert code == 0
    assert "cider" in text
    assert json.loads((workplace / "judged-0" / "results.json").read_text())["bank"] is None
    mixed = ("--model", baseline, "--bank", folder, "--out", workplace / "judged-1")
    assert run("evaluate", *mixed, *words)[0] == 2
    drawn = ("--model", folder, "--bank", folder, "--random-memories")
    drawn = report("evaluate", *drawn, *words, "--out", workplace / "judged-2")
    assert drawn["metrics"]["loss"] != results["metrics"]["loss"]


def check_asking(run, report, workplace: Path, folder: Path) -> None:
    image = ("--image", workplace / "dev" / "101.png", "--max-new-tokens", 4)
    said = report("ask", "what?", "--model", folder, "--bank", workplace / "bank", *image)
    assert said["question"] == "what?"
    assert len(said["memories"]) == 2
    code, out, _ = run(
        "ask", "what?", "--model", folder / "model", "--bank", folder, *image, "--show-memories"
    )
    assert code == 0
    assert out.startswith(said["answer"])
    for memory in said["memories"]:
        assert f"{memory['similarity']:.4f} │ {memory['id']}" in out
    alone = run("ask", "what?", "--model", folder, *image)
    assert alone[0] == 0
    assert "answers from its weights alone" in " ".join(alone[2].split())
    one = report("ask", "--model", folder, "--bank", folder, *image, "--k", 1)
    assert (len(one["memories"]), one["question"]) == (1, "")
