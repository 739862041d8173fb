"""From pairs to answers on tiny random models, by the command line alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from .conftest import make_pairs


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


@pytest.mark.slow
def test_pairs_to_answers(run, workplace: Path, tiny_vision_dir: Path):
    """Each verb takes what the one before it left, and says so both in words and in JSON."""

    def report(*words: object) -> dict:
        code, out, errors = run(*words, "--json")
        assert code == 0, errors
        return json.loads(out)

    data = workplace / "train" / "pairs.json"
    here = ("--vision", tiny_vision_dir, "--data", data, "--cache-folder", workplace / "cache")
    perceiver, bank = workplace / "compressor", workplace / "bank"
    few = ("--min-steps", 1, "--max-steps", 2, "--vocab-size", 300, "--batch-size", 8)
    code, out, _ = run("perceiver", "train", *here, "--out", perceiver, *few, "--held-out", 0.2)
    assert code == 0
    assert re.search(r"text tokens read back +│ +\d+\.\d %", out)
    next_one = f"bank build --data {data} --vision {tiny_vision_dir} --perceiver {perceiver}"
    assert next_one in out
    assert "holds a Perceiver already" in run("perceiver", "train", *here, "--out", perceiver)[2]

    built = report("bank", "build", *here, "--perceiver", perceiver, "--out", bank)
    assert (built["count"], built["skipped"]) == (24, [])
    again = report("bank", "build", *here, "--perceiver", bank, "--out", bank)
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
    drawn = ("--model", folder, "--bank", folder, "--memory", "random")
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
    exact = ("--engine", "exact")
    one = report("ask", "--model", folder, "--bank", folder, *image, "--k", 1, *exact)
    assert (len(one["memories"]), one["question"]) == (1, "")
    chosen = ("--best-of", 3, "--beams", 2, "--copy", 0.5)
    best = report("ask", "what?", "--model", folder, "--bank", folder, *image, *chosen)
    assert [memory["id"] for memory in best["memories"]] == [m["id"] for m in said["memories"]]
    for wrong, words in (
        (("--best-of", 3), "needs a --bank"), (("--copy", 0.5), "no bank to copy from"),
    ):  # fmt: skip
        code, _, errors = run("ask", "what?", "--model", folder, *image, *wrong)
        assert (code, words in " ".join(errors.split())) == (2, True)
