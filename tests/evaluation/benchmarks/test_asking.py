"""A model asked a benchmark from its official files: every question counts, as from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.asking import Asking, prepare
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.benchmarks.scoring import score_files
from tinyalign.evaluation.controls.comparison_rows import ROWS, evaluate_rows
from tinyalign.evaluation.results import read_results
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.evaluation.running.shards import Shard

from ..conftest import World
from .official import OFFICIAL


@pytest.fixture
def asking(tmp_path: Path):
    """`asking("pope", limit=...)`: the small benchmark of that name, ready to be asked."""

    def ready(name: str, **settings) -> Asking:
        folder = tmp_path / name
        OFFICIAL[name][0](folder)
        benchmark = get_benchmark(name)
        return prepare(benchmark, folder, benchmark.protocol(), **settings)

    return ready


def run(world: World, asking: Asking, memory: bool = True, **more):
    settings = {**asking.for_runner(), "max_new_tokens": 4, **more}
    retriever = world.retriever if memory else None
    return evaluate(world.model, world.processor, asking.samples, retriever=retriever, **settings)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_run_scores_as_its_predictions_file_does(name, world: World, asking, tmp_path: Path):
    asked = asking(name)
    found = run(world, asked, out=tmp_path / "run").results
    assert found.n == len(asked.questions) == OFFICIAL[name][1]
    scored = score_files(
        asked.benchmark, tmp_path / "run" / "predictions.jsonl", tmp_path / name, asked.protocol
    )
    metrics = {key: value for key, value in found.metrics.items() if key != "loss"}
    assert scored.results.metrics == metrics
    assert scored.results.settings["counts"] == found.settings["counts"]
    assert scored.results.protocol == found.protocol


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_results_say_how_it_was_asked_and_judged(name, world: World, asking, tmp_path: Path):
    asked = asking(name)
    evaluation = run(world, asked, out=tmp_path / "run")
    found = read_results(tmp_path / "run")
    assert found.task == name
    assert (found.protocol["name"], found.protocol["version"]) == ("llava-1.5", "1")
    assert found.protocol["rule"] == asked.benchmark.rule
    assert found.settings["benchmark"] == asked.benchmark.title
    assert found.settings["counts"]["missing"] == 0
    assert found.settings["memories"] == 2
    assert found.model_hash
    assert found.bank_hash == world.retriever.bank.hash
    assert found.versions["transformers"]
    for question, prediction in zip(asked.questions, evaluation.predictions):
        assert prediction.instruction == asked.benchmark.prompt(question, asked.protocol).strip()
        assert prediction.category == question.group


def test_science_questions_without_an_image_are_not_asked(world: World, asking):
    asked = asking("scienceqa")
    assert [q.id for q in asked.questions] == ["1", "3"]
    assert asked.questions.notes["questions_without_image_left_out"] == 2
    found = run(world, asked).results
    assert found.metrics["image_accuracy"] == found.metrics["accuracy"]
    assert found.settings["files"]["questions_without_image_left_out"] == 2


def test_with_a_limit_the_first_questions_are_the_benchmark(world: World, asking):
    found = run(world, asking("pope", limit=5))
    assert found.results.n == 5
    assert [p.category for p in found.predictions] == ["random"] * 4 + ["popular"]
    confusion = found.results.settings["counts"]["confusion"]
    assert sum(confusion["random"].values()) == 4
    assert sum(confusion["popular"].values()) == 1


def test_a_limit_leaves_mmes_pairs_whole(asking):
    assert len(asking("mme", limit=6).questions) == 6
    with pytest.raises(EvaluationError, match="take 4"):
        asking("mme", limit=3)


def test_shards_join_to_the_whole(world: World, asking, tmp_path: Path):
    asked = asking("mme")
    whole = run(world, asked, out=tmp_path / "whole").results
    first = run(world, asked, out=tmp_path / "parts", shard=Shard(1, 2))
    assert first.missing == 4
    assert first.results.metrics == {}
    joined = run(world, asked, out=tmp_path / "parts", shard=Shard(2, 2)).results
    totals = {name: joined.metrics[name] for name in ("perception", "cognition")}
    assert totals == {name: whole.metrics[name] for name in totals}


def test_a_stopped_run_goes_on_and_a_finished_one_is_read(world: World, asking, tmp_path: Path):
    asked = asking("vqav2")
    run(world, asked, out=tmp_path / "run", shard=Shard(1, 2))
    found = run(world, asked, out=tmp_path / "run")
    assert found.results.n == 6
    seconds = found.results.settings["seconds"]
    assert run(world, asked, out=tmp_path / "run").results.settings["seconds"] == seconds
    with pytest.raises(EvaluationError, match="other settings"):
        run(world, asked, out=tmp_path / "run", memory=False)


def test_all_four_rows(world: World, asking, tmp_path: Path):
    asked = asking("pope")
    settings = {**asked.for_runner(), "max_new_tokens": 4}
    rows = evaluate_rows(
        world.model,
        world.processor,
        asked.samples,
        retriever=world.retriever,
        out=tmp_path / "rows",
        **settings,
    )
    assert {name: row.results.settings["memory"] for name, row in rows.items()} == {
        "on": "on", "off": "off", "shuffled": "shuffled", "text-only": "off",
        "nearest": "look-up: nearest", "consensus": "look-up: consensus",
    }  # fmt: skip
    assert all("f1" in row.results.metrics for row in rows.values())
    losses = [row.results.metrics["loss"].value for name, row in rows.items() if name in ROWS]
    assert len(set(losses)) == 4


def test_a_picture_that_cannot_be_read_is_an_error_or_a_wrong_answer(
    world: World, asking, tmp_path: Path
):
    asked = asking("vqav2", missing="wrong")
    (tmp_path / "vqav2" / "val2014" / f"COCO_val2014_{0:012d}.jpg").write_bytes(b"no picture")
    found = run(world, asked).results
    assert found.n == 4
    assert found.settings["counts"]["missing"] == 2
    assert len(found.skipped) == 2
    with pytest.raises(EvaluationError, match="2 of 6 questions have no answer"):
        run(world, Asking(asked.benchmark, asked.questions, asked.protocol))


def test_unreadable_pictures_are_refused_before_anything_is_asked(asking):
    from tinyalign.evaluation.results import Skipped

    lost = [Skipped("100", "image x.jpg: expected a file, found none")]
    asking("vqav2", missing="wrong").check_readable(lost)
    with pytest.raises(EvaluationError, match=r"1 of 6 questions of VQAv2 .* x\.jpg"):
        asking("vqav2").check_readable(lost)


def test_files_that_cannot_be_asked_from_are_named(tmp_path: Path):
    mmmu = get_benchmark("mmmu")
    answers = tmp_path / "answer_dict_val.json"
    truth = {"question_type": "multiple-choice", "ground_truth": "A"}
    answers.write_text(json.dumps({"validation_Art_1": truth}))
    with pytest.raises(EvaluationError, match="no question with an image"):
        prepare(mmmu, answers, mmmu.protocol())
    vet = get_benchmark("mm-vet")
    with pytest.raises(EvaluationError, match="needs a judge"):
        prepare(vet, tmp_path, vet.protocol())
