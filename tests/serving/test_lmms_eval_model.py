"""An installed TinyAlign is a model that lmms-eval knows; a task of local files runs on it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tinyalign.cli import main
from tinyalign.data.images import load_image
from tinyalign.data.sample import ImageRef, Message
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.running.conversations import Answerer, Conversation
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.serving import lmms_eval_model
from tinyalign.serving.lmms_eval_model import conversation

from ..evaluation.conftest import World, perceiver, questions, world  # noqa: F401

TASK = """
task: tiny_colours
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.judged
generation_kwargs:
  max_new_tokens: 5
  do_sample: false
  temperature: 0
metric_list:
  - metric: starts_right
    aggregation: mean
    higher_is_better: true
  - metric: letters
    aggregation: !function utils.spread
    higher_is_better: true
metadata:
  - version: 1.0
"""
UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def judged(doc, results):
    return {"starts_right": float(results[0][:1] > "m"), "letters": {"n": len(results[0])}}


def spread(each):
    return max(one["n"] for one in each) - min(one["n"] for one in each)
"""


def as_picture(sample) -> Image.Image:
    return load_image(sample.images[0])


@pytest.fixture
def lmms_eval():
    """lmms-eval, which is no dependency; the tests that need it skip without it."""
    return pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")


@pytest.fixture
def task_folder(tmp_path: Path, questions, monkeypatch) -> Path:  # noqa: F811
    """A folder with a task of five questions in a parquet file."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows = {
        "image": [{"bytes": q.images[0].data, "path": None} for q in questions[:5]],
        "question": [q.instruction for q in questions[:5]],
        "answer": [q.answer for q in questions[:5]],
    }
    kinds = {"image": ImageFeature(), "question": Value("string"), "answer": Value("string")}
    folder = tmp_path / "tasks"
    folder.mkdir()
    Dataset.from_dict(rows, features=Features(kinds)).to_parquet(folder / "test.parquet")
    (folder / "tiny.yaml").write_text(TASK.format(file=folder / "test.parquet"))
    (folder / "utils.py").write_text(UTILS)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(scope="session")
def saved(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The model in a folder."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    world.model.save_pretrained(folder)
    world.processor.save_pretrained(folder)
    return folder


def test_conversations_are_answered_as_the_runner_answers_samples(world, questions):  # noqa: F811
    judged = evaluate(
        world.model,
        world.processor,
        questions,
        task="vqa",
        retriever=world.retriever,
        max_new_tokens=5,
    ).predictions
    asked = [
        Conversation(q.id, (Message("user", q.instruction),), as_picture(q)) for q in questions
    ]
    answerer = Answerer(world.model, world.processor, world.retriever, batch_size=4)
    found = answerer.answers(asked, 5)
    assert [p.prediction for p in found] == [p.prediction for p in judged]
    assert [p.memory_ids for p in found] == [p.memory_ids for p in judged]


def test_text_alone_is_answered_between_questions_about_images(world, questions):  # noqa: F811
    picture = as_picture(questions[0])
    message = (Message("user", "What colour?"),)
    asked = [Conversation("a", message, picture), Conversation("b", message),
             Conversation("c", message, picture)]  # fmt: skip
    found = Answerer(world.model, world.processor, world.retriever, 8).answers(asked, 4)
    assert [p.id for p in found] == ["a", "b", "c"]
    assert [len(p.memory_ids) for p in found] == [2, 0, 2]
    assert found[0].prediction == found[2].prediction


def test_messages_become_conversations(photo, caplog):
    image, text = {"type": "image", "url": photo}, {"type": "text", "text": "What is it?"}
    found = conversation("t/0", [{"role": "user", "content": [image, text]}])
    assert found.messages == (Message("user", "What is it?"),)
    assert found.image is not None
    assert found.image.size == photo.size
    two = conversation("t/1", [{"role": "user", "content": [image, image, text]}])
    assert two.image == found.image
    assert conversation("t/2", [{"role": "user", "content": "Hi"}]).image is None
    with pytest.raises(EvaluationError, match="video"):
        conversation("t/3", [{"role": "user", "content": [{"type": "video", "url": "v"}]}])


def test_the_first_image_is_read_from_its_file_too(tmp_path: Path, photo):
    photo.save(tmp_path / "p.png")
    part = {"type": "image", "url": str(tmp_path / "p.png")}
    found = conversation("t/0", [{"role": "user", "content": [part]}])
    assert found.image == load_image(ImageRef(path=str(tmp_path / "p.png")))


def test_without_lmms_eval_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    lmms_eval_model._model_class.cache_clear()
    with pytest.raises(EvaluationError, match=r"pip install 'tinyalign-vlm\[lmms-eval\]'"):
        _ = lmms_eval_model.TinyAlign
    lmms_eval_model._model_class.cache_clear()


def test_lmms_eval_finds_the_model_by_its_manifest(lmms_eval):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(lmms_eval_model.manifest())
    assert registry.resolve("tinyalign").model_type == "chat"
    assert registry.get_model_class("tinyalign") is lmms_eval_model.TinyAlign


def test_sampling_is_refused(lmms_eval, saved: Path):
    model = lmms_eval_model.TinyAlign(str(saved), device="cpu")
    args = ("", None, {"do_sample": True, "temperature": 0.7}, 0, "some_task", "test")
    with pytest.raises(EvaluationError, match=r"'some_task' wants .*greedily"):
        model.generate_until([SimpleNamespace(args=args)])


def test_answers_stop_where_the_task_says(lmms_eval, saved: Path, questions):  # noqa: F811
    model = lmms_eval_model.TinyAlign(str(saved), device="cpu")
    model.task_dict = {"t": {"test": questions[:1]}}

    def request(**wanted):
        def messages(q):
            return [{"role": "user", "content": [{"type": "image", "url": as_picture(q)}]}]

        args = ("", messages, {"max_new_tokens": 6, **wanted}, 0, "t", "test")
        return SimpleNamespace(args=args)

    [whole] = model.generate_until([request()])
    stop = whole[2]
    assert model.generate_until([request(until=[stop])]) == [whole.split(stop)[0]]


def test_a_local_task_runs_with_memory_and_gives_our_results_file(
    lmms_eval, saved: Path, world: World, task_folder: Path, questions, capsys, tmp_path: Path  # noqa: F811
):  # fmt: skip
    bank = world.retriever.bank.folder
    words = ["evaluate", "--lmms-eval", "tiny_colours", "--include-path", task_folder]
    words += ["--model", saved, "--bank", bank, "--limit", 4, "--batch-size", 3]
    words += ["--device", "cpu", "--out"]
    assert main([str(word) for word in [*words, tmp_path / "out"]]) == 0
    page = capsys.readouterr().out
    assert "tiny_colours: 4 samples" in page
    assert "bank: 3 of 4 samples by image" in page
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["task"] == "lmms-eval/tiny_colours"
    assert results["protocol"]["name"] == "lmms-eval"
    assert results["protocol"]["tasks"]["tiny_colours"]["generation_kwargs"]["max_new_tokens"] == 5
    assert results["versions"]["lmms-eval"] == results["protocol"]["version"]
    assert results["bank_hash"] == world.retriever.bank.hash
    assert results["contamination"]["bank"]["images"] == 3
    assert set(results["metrics"]) == {"starts_right"}
    assert set(results["settings"]["without_interval"]) == {"letters"}
    ours = evaluate(
        world.model,
        world.processor,
        [dataclasses.replace(q, id=f"x{i}") for i, q in enumerate(questions[:4])],
        task="vqa",
        retriever=world.retriever,
        max_new_tokens=5,
    ).predictions
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [f["prediction"] for f in found] == [p.prediction for p in ours]
    assert [tuple(f["memory_ids"]) for f in found] == [p.memory_ids for p in ours]
    right = [float(f["prediction"][:1] > "m") for f in found]
    assert [f["scores"]["starts_right"] for f in found] == right
    assert results["metrics"]["starts_right"]["value"] == sum(right) / 4
    assert main([str(word) for word in [*words, tmp_path / "out"]]) == 2
    assert "--no-resume" in capsys.readouterr().err
    assert main([str(word) for word in [*words, tmp_path / "strict", "--strict"]]) == 2
    assert "3 of 4 samples by image" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "strict").exists()


def test_what_the_task_decides_is_no_option(capsys, tmp_path: Path):
    words = ["evaluate", "--lmms-eval", "x", "--model", "m", "--out", str(tmp_path / "o")]
    for more in (["--data", "d"], ["--rows", "all"], ["--benchmark", "pope"]):
        assert main([*words, *more]) == 2
        assert f"{more[0]} does not go with --lmms-eval" in capsys.readouterr().err
