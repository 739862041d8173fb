"""`tinyalign evaluate` on a tiny model: rows, shards, ranks, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyalign.memory.building.builder import build_bank
from tinyalign.memory.perceiver import Perceiver
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.sources import open_source

from ...evaluation.benchmarks.official import OFFICIAL
from ...evaluation.conftest import make_compressor, make_model
from ..conftest import make_pairs


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_vision_dir: Path, tiny_llm_dir: Path):
    """A folder with a model, its bank, and nine pairs that are not in it."""
    folder = tmp_path_factory.mktemp("judged")
    pairs = open_source(DataSource(path=str(make_pairs(folder / "train", 12))), 0)
    make_pairs(folder / "dev", 9, first=50)
    perceiver: Perceiver = make_compressor(list(pairs), VisionEncoder.load(tiny_vision_dir))
    model, processor = make_model(tiny_vision_dir, tiny_llm_dir, perceiver, k=2, template="plain")
    vision = VisionEncoder.from_model(model, processor)
    build_bank(list(pairs), vision, perceiver, folder / "bank")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def evaluate(run, judged: Path):
    """`evaluate(...)` with the model and the data named already."""
    words = ("--model", judged / "model", "--data", judged / "dev" / "pairs.json")
    few = ("--task", "caption", "--max-new-tokens", 3, "--batch-size", 4)

    def call(*more: object):
        return run("evaluate", *words, *few, *more)

    return call


def test_one_flag_each_for_what_retrieval_did(evaluate, judged: Path, tmp_path: Path):
    bank = ("--bank", judged / "bank")
    flags = {
        "on": (),
        "off": ("--memory", "off"),
        "shuffled": ("--control", "shuffled"),
        "text-only": ("--no-image",),
    }
    code, out, errors = evaluate(*bank, "--rows", "all", "--out", tmp_path / "rows", "--json")
    assert code == 0, errors
    rows = json.loads(out)
    assert list(rows) == [*flags, "nearest", "consensus"]
    for row, words in flags.items():
        code, out, _ = evaluate(*bank, *words, "--out", tmp_path / row, "--json")
        single = json.loads(out)
        assert single["metrics"] == rows[row]["metrics"], row
        assert single["bank_hash"] == (None if row in ("off", "text-only") else
                                       rows["on"]["bank_hash"])  # fmt: skip
    assert len({rows[row]["metrics"]["loss"]["value"] for row in flags}) == 4


def test_how_the_bank_is_searched_may_be_said_and_stands_in_the_results(
    evaluate, judged: Path, tmp_path: Path
):
    pytest.importorskip("faiss")
    few = ("--bank", judged / "bank", "--no-loss")
    ivf = ("--engine", "ivf", "--recall", 0.9)
    code, out, errors = evaluate(*few, *ivf, "--out", tmp_path / "ivf", "--json")
    assert code == 0, errors
    assert json.loads(out)["settings"]["search"] == {"engine": "ivf", "recall": 0.9}
    assert (judged / "bank" / "index" / "ivf-1.faiss").is_file()
    code, _, errors = evaluate(*few, "--out", tmp_path / "ivf")
    assert code == 2
    assert "other settings" in errors
    assert "none was given" in " ".join(evaluate(*ivf, "--out", tmp_path / "no")[2].split())


def test_the_precision_is_the_saved_one_or_the_one_asked_for(evaluate, tmp_path: Path):
    found = {}
    for name in ("auto", "bfloat16", "float32"):
        code, out, errors = evaluate("--dtype", name, "--out", tmp_path / name, "--json")
        assert code == 0, errors
        found[name] = json.loads(out)
    assert {name: one["settings"]["dtype"] for name, one in found.items()} == {
        "auto": "torch.float32",
        "bfloat16": "torch.bfloat16",
        "float32": "torch.float32",
    }
    assert found["auto"]["metrics"] == found["float32"]["metrics"] != found["bfloat16"]["metrics"]


def test_answers_alone_are_the_same_answers_without_a_loss(evaluate, tmp_path: Path):
    code, out, errors = evaluate("--no-loss", "--out", tmp_path / "answers", "--json")
    assert code == 0, errors
    alone, both = json.loads(out), json.loads(evaluate("--out", tmp_path / "both", "--json")[1])
    assert alone["settings"]["loss"] == "not measured"
    assert {**both["metrics"]} == {**alone["metrics"], "loss": both["metrics"]["loss"]}
    said = [
        [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/predictions.jsonl"))
    ]
    assert said[0] == said[1]
    code, _, errors = evaluate("--no-loss", "--max-new-tokens", 0, "--out", tmp_path / "none")
    assert code == 2
    assert "nothing to measure" in errors


def test_rows_are_printed_together_with_what_memory_changed(evaluate, judged: Path, tmp_path: Path):
    words = ("--bank", judged / "bank", "--rows", "all", "--out", tmp_path)
    code, out, _ = evaluate(*words)
    assert code == 0
    results = {
        row: json.loads((tmp_path / row / "results.json").read_text())["metrics"]
        for row in ("on", "off", "shuffled", "text-only")
    }
    for row, metrics in results.items():
        value = metrics["loss"]["value"]
        gap = "" if row == "on" else f" │ +{results['on']['loss']['value'] - value:+.4f}"
        gap = gap.replace("+-", "-").replace("++", r"\+")
        assert re.search(rf"│ {row} +│ +{value:.4f} │ [\d. to]+{gap}", out), out
    assert "results: " in out
    again = evaluate(*words)  # nothing is judged twice
    assert again[1] == out
    assert "finished before" in again[2]


def test_shards_on_the_command_line(evaluate, judged: Path, tmp_path: Path):
    words = ("--bank", judged / "bank", "--out", tmp_path / "shards")
    code, out, _ = evaluate(*words, "--shard", "2/2")
    assert code == 0
    assert "shard 2/2: done; other shards have 4 samples still to judge" in out
    code, out, _ = evaluate(*words, "--shard", "1/2")
    assert code == 0
    assert "caption: 9 samples" in out
    whole = evaluate("--bank", judged / "bank", "--out", tmp_path / "whole", "--json")
    joined = json.loads((tmp_path / "shards" / "results.json").read_text())
    assert joined["metrics"]["cider"] == json.loads(whole[1])["metrics"]["cider"]
    assert evaluate(*words, "--shard", "3/2")[0] == 2


def test_another_evaluation_is_not_written_over(evaluate, judged: Path, tmp_path: Path):
    assert evaluate("--out", tmp_path)[0] == 0
    before = (tmp_path / "results.json").read_bytes()
    code, _, errors = evaluate("--out", tmp_path, "--bank", judged / "bank")
    assert code == 2
    assert "bank_hash None ->" in errors
    assert (tmp_path / "results.json").read_bytes() == before
    assert evaluate("--out", tmp_path, "--bank", judged / "bank", "--no-resume")[0] == 0
    assert (tmp_path / "results.json").read_bytes() != before


def test_what_does_not_go_together_is_said_before_the_model_is_loaded(evaluate, tmp_path: Path):
    here = ("--out", tmp_path / "o")
    cases = {
        "--control shuffled needs a --bank": (*here, "--control", "shuffled"),
        "--rows all compares a memory with none": (*here, "--rows", "all"),
        "leave them out": (*here, "--rows", "all", "--bank", "b", "--no-image"),
        "must be a folder": ("--out", "o.json", "--rows", "all", "--bank", "b"),
        "a shard is written I/N": (*here, "--shard", "two"),
        "one of --task, --benchmark and --lmms-eval": (*here, "--benchmark", "pope"),
        "--missing goes with --benchmark": (*here, "--missing", "wrong"),
        "--images goes with --benchmark": (*here, "--images", "i"),
    }
    for said, words in cases.items():
        code, out, errors = evaluate(*words)
        assert (code, out) == (2, ""), words
        assert said in errors


def test_a_page_of_two_rows_finds_images_and_memory_texts(
    evaluate, run, judged: Path, tmp_path: Path
):
    evaluate("--bank", judged / "bank", "--out", tmp_path / "on")
    evaluate("--bank", judged / "bank", "--memory", "off", "--out", tmp_path / "off")
    words = ("--metric", "loss", "--html", tmp_path / "page.html")
    code, _, errors = run("compare", tmp_path / "on", tmp_path / "off", *words)
    assert (code, errors) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 9
    assert "image not found" not in page
    assert re.search(r'<li>pair-\d+ <span class="quiet">[\d.]+</span> A \w+ dog, number', page)


@pytest.fixture
def ask(run, judged: Path, tmp_path: Path):
    """`ask("pope", ...)`: `evaluate` on the small benchmark of that name."""

    def call(name: str, *more: object):
        OFFICIAL[name][0](tmp_path / name)
        words = ("--model", judged / "model", "--benchmark", name, "--data", tmp_path / name)
        return run("evaluate", *words, "--max-new-tokens", 3, "--protocol", "plain", *more)

    return call


def test_a_benchmark_by_its_name(ask, run, judged: Path, tmp_path: Path):
    code, out, errors = ask("mme", "--bank", judged / "bank", "--out", tmp_path / "out")
    assert code == 0, errors
    assert "mme: 8 samples" in out
    assert re.search(r"perception .*cognition ", out, re.DOTALL)
    assert "plain, version 1" in out
    assert "yes or no exactly" in out
    assert "contamination: bank: 0 of 8 samples by image, 0 by id; training data: not" in out
    words = ("--predictions", tmp_path / "out" / "predictions.jsonl", "--protocol", "plain")
    code, page, _ = run(
        "score", "--benchmark", "mme", *words, "--references", tmp_path / "mme", "--json"
    )
    assert code == 0
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert json.loads(page)["metrics"] == {k: v for k, v in metrics.items() if k != "loss"}


def test_rows_of_a_benchmark_are_compared_in_its_own_metrics(ask, judged: Path, tmp_path: Path):
    words = ("--bank", judged / "bank", "--rows", "all", "--out", tmp_path / "rows")
    code, out, errors = ask("pope", *words, "--limit", 4)
    assert code == 0, errors
    assert "memory (4 samples)" in out
    assert "yes_ratio" in out
    assert "random/f1" not in out
    assert (tmp_path / "rows" / "text-only" / "results.json").is_file()


def test_a_benchmark_refuses_options_of_a_task_and_pictures_that_are_not_there(
    ask, run, judged: Path, tmp_path: Path
):
    here = ("--out", tmp_path / "o")
    code, _, errors = ask("pope", *here, "--prompt", "Look.")
    assert (code, "--prompt goes with --task alone" in errors) == (2, True)
    code, _, errors = ask("pope", *here, "--images", tmp_path / "none")
    assert code == 2
    assert "12 of 12 questions of POPE cannot be asked" in errors
    assert "--images" in errors
    code, _, errors = ask("pope", *here, "--wordnet", "w")
    assert (code, "for daquar alone" in errors) == (2, True)
    words = ("--model", judged / "model", "--benchmark", "gqa", *here)
    assert "--data" in run("evaluate", *words)[2]


def test_a_page_of_two_benchmark_runs_finds_images_in_a_table(
    ask, run, judged: Path, tmp_path: Path
):
    ask("mmmu", "--bank", judged / "bank", "--out", tmp_path / "on")
    ask("mmmu", "--out", tmp_path / "off")
    words = ("--metric", "loss", "--html", tmp_path / "page.html")
    code, out, errors = run("compare", tmp_path / "on", tmp_path / "off", *words)
    assert (code, errors) == (0, "")
    assert re.search(r"Art +│ +2 │", out)
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 4


def test_what_was_seen_before_is_said_and_with_strict_refused(run, judged: Path, tmp_path: Path):
    train = judged / "train" / "pairs.json"
    words = ("--model", judged / "model", "--bank", judged / "bank", "--task", "caption")
    words += ("--max-new-tokens", 0, "--data", train, "--limit", 4)
    code, out, errors = run("evaluate", *words, "--out", tmp_path / "said")
    assert code == 0
    line = "bank: 4 of 4 samples by image, 4 by id (100.0 %), such as pair-0, pair-1"
    assert f"contamination: {line}" in " ".join(out.split())
    assert "seen before" in errors
    found = json.loads((tmp_path / "said" / "results.json").read_text())["contamination"]
    assert (found["bank"]["images"], found["bank"]["ids"], found["bank"]["of"]) == (4, 4, 4)
    code, _, errors = run("evaluate", *words, "--out", tmp_path / "refused", "--strict")
    assert code == 2
    assert line in errors
    assert not (tmp_path / "refused").exists()


def test_training_data_are_compared_where_they_are_named(evaluate, judged: Path, tmp_path: Path):
    dev, train = judged / "dev" / "pairs.json", judged / "train" / "pairs.json"
    code, out, _ = evaluate("--out", tmp_path / "a", "--train-data", train, "--strict")
    assert code == 0
    assert "training data: 0 of 9 samples by image" in out
    code, _, errors = evaluate("--out", tmp_path / "b", "--train-data", dev, "--strict")
    assert code == 2
    assert "training data: 9 of 9 samples by image" in errors


@pytest.mark.slow
def test_torchrun_judges_as_one_process_does(evaluate, judged: Path, tmp_path: Path):
    evaluate("--bank", judged / "bank", "--out", tmp_path / "one")
    words = ["--model", judged / "model", "--bank", judged / "bank", "--out", tmp_path / "two"]
    words += ["--data", judged / "dev" / "pairs.json", "--task", "caption"]
    words += ["--max-new-tokens", 3, "--batch-size", 2, "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", 2, "-m", "tinyalign", "evaluate", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("caption: 9 samples") == 1
    found = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")]
    assert found[0]["metrics"]["cider"] == found[1]["metrics"]["cider"]
    assert found[0]["metrics"]["loss"]["value"] == pytest.approx(
        found[1]["metrics"]["loss"]["value"], rel=1e-5
    )


def test_a_question_that_the_template_leaves_out_is_said_once(
    run, judged: Path, tmp_path: Path
) -> None:
    words = ("--model", judged / "model", "--data", judged / "dev" / "pairs.json", "--limit", 2)
    said = {}
    for task in ("vqa", "caption"):
        rows = ("--bank", judged / "bank", "--rows", "all", "--max-new-tokens", 1)
        out = ("--task", task, "--out", tmp_path / task)
        code, _, said[task] = run("evaluate", *words, *rows, *out)
        assert code == 0, said[task]
    assert said["vqa"].count("chat template (plain) leaves the question out") == 1
    assert "leaves the question out" not in said["caption"]


def test_of_a_single_image_there_is_no_interval(evaluate, judged: Path, tmp_path: Path) -> None:
    code, out, errors = evaluate("--limit", 1, "--out", tmp_path / "one")
    assert code == 0, errors
    assert re.search(r"│ loss +│ +\d+\.\d{4} │ - +│ - +│", out), out
    code, out, errors = evaluate(
        "--limit", 1, "--bank", judged / "bank", "--rows", "all", "--out", tmp_path / "rows"
    )
    assert code == 0, errors
    assert re.search(r"│ off +│ +\d+\.\d{4} │ - +│ [+-]\d+\.\d{4} +│ - +│", out), out
    code, out, _ = evaluate("--limit", 2, "--out", tmp_path / "two")
    assert re.search(r"│ loss +│ +\d+\.\d{4} │ +\d+\.\d{4} │ +\d+\.\d{4} │", out), out
