"""Evaluations that are stopped, split, or asked for twice: nothing is lost, doubled or mixed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch.multiprocessing as multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.errors import ConfigError, EvaluationError
from tinyalign.evaluation.results import read_predictions, read_results
from tinyalign.evaluation.running.partial_files import PATTERN
from tinyalign.evaluation.running.predictor import Predictor
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.evaluation.running.shards import Shard, join_ranks, leave_ranks, rank

from ..conftest import World
from .test_runner import close


def run(world: World, samples, out: Path | None = None, **settings):
    settings = {"task": "vqa", "max_new_tokens": 4, "batch_size": 2, **settings}
    settings.setdefault("retriever", world.retriever)
    return evaluate(world.model, world.processor, samples, out=out, **settings)


class Killed(BaseException):
    """As a power cut: nothing catches it."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch):
    """`kill_after(n)`: the n-th batch from now on is never judged."""
    predict = Predictor.predict

    def arm(batches: int | None) -> list[int]:
        judged: list[int] = []

        def counting(self, items):
            if batches is not None and len(judged) >= batches:
                raise Killed
            found = predict(self, items)
            judged.extend(found)
            return found

        monkeypatch.setattr(Predictor, "predict", counting)
        return judged

    return arm


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(PATTERN))


def test_a_killed_run_goes_on_where_it_was(world, questions, tmp_path: Path, kill_after):
    whole = run(world, questions)
    kill_after(4)
    with pytest.raises(Killed):
        run(world, questions, tmp_path)
    [part] = parts(tmp_path)
    assert not (tmp_path / "results.json").exists()
    lines = (tmp_path / part).read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines[1:]] == [0, 1, 2, 3]
    with open(tmp_path / part, "a") as file:  # killed while writing
        file.write(lines[-1][:40])
    judged = kill_after(None)
    again = run(world, questions, tmp_path)
    assert judged == [4, 5, 6, 7, 8]
    assert close(again.predictions, whole.predictions)
    assert again.results.metrics["accuracy"] == whole.results.metrics["accuracy"]
    assert read_predictions(tmp_path) == again.predictions
    assert parts(tmp_path) == []


def test_a_finished_run_is_read_and_not_run_again(world, questions, tmp_path: Path, kill_after):
    first = run(world, questions, tmp_path)
    judged = kill_after(None)
    again = run(world, questions, tmp_path, batch_size=5)
    assert judged == []
    assert (again.results, again.predictions) == (first.results, first.predictions)
    run(world, questions, tmp_path, resume=False)
    assert judged == list(range(9))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"retriever": None}, "bank_hash"),
        ({"max_new_tokens": 3}, "decoding.max_new_tokens 4 -> 3"),
        ({"seed": 1}, "seed 0 -> 1"),
        ({"show_image": False}, "settings.image shown -> left out"),
        ({"protocol": {"name": "other"}}, "protocol.name None -> other"),
        ({"task": "easy_vqa"}, "task vqa -> easy_vqa"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_other_settings_are_refused_by_name(
    world, questions, tmp_path: Path, kill_after, changed, named, finished: bool
):
    if finished:
        run(world, questions[:3], tmp_path)
    else:
        kill_after(2)
        with pytest.raises(Killed):
            run(world, questions[:3], tmp_path)
        kill_after(None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(EvaluationError, match=f"other settings.*{named}"):
        run(world, questions[:3], tmp_path, **changed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run(world, questions[:3], tmp_path, **changed, resume=False)


def test_other_data_is_refused(world, questions, tmp_path: Path, kill_after):
    kill_after(2)
    with pytest.raises(Killed):
        run(world, questions, tmp_path)
    kill_after(None)
    with pytest.raises(EvaluationError, match=r"settings\.samples 9 -> 8"):
        run(world, questions[:8], tmp_path)
    with pytest.raises(EvaluationError, match="other data: sample 's0'"):
        run(world, questions[::-1], tmp_path)
    other = [dataclasses.replace(s, references=("teal",)) for s in questions]
    with pytest.raises(EvaluationError, match="other data"):
        run(world, other, tmp_path)


def test_predictions_of_unknown_origin_are_never_lost(world, questions, tmp_path: Path):
    (tmp_path / "predictions.jsonl").write_text("somebody's\n")
    with pytest.raises(EvaluationError, match="belongs to another evaluation"):
        run(world, questions, tmp_path)
    (tmp_path / "predictions-1-of-1.partial.jsonl").write_text("{nonsense}\n")
    (tmp_path / "predictions.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"partial\.jsonl, line 1: damaged"):
        run(world, questions, tmp_path)


def test_a_skipped_sample_gets_another_chance(world, questions, tmp_path: Path, kill_after):
    blind = [dataclasses.replace(questions[0], images=()), *questions[1:]]
    kill_after(2)
    with pytest.raises(Killed):
        run(world, blind, tmp_path, batch_size=1)
    kill_after(None)
    mended = run(world, questions, tmp_path)
    assert (mended.results.n, mended.results.skipped) == (9, [])


# ------------------------------------------------------------------------------------------ shards


@given(n=st.integers(0, 200), count=st.integers(1, 20), world=st.integers(1, 4))
def test_shards_and_their_ranks_cover_all_once(n: int, count: int, world: int):
    shards = [Shard(i, count).indices(n) for i in range(1, count + 1)]
    assert [i for shard in shards for i in shard] == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_is_written_as_people_say_it():
    assert Shard.parse("2/4") == Shard(2, 4)
    for wrong in ("0/4", "5/4", "2", "a/b", "-1/2"):
        with pytest.raises(ConfigError, match="shard"):
            Shard.parse(wrong)


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_shards_join_to_the_whole(world, questions, tmp_path: Path, task: str):
    questions = [dataclasses.replace(questions[0], images=()), *questions[1:]]
    whole = run(world, questions, tmp_path / "whole", task=task)
    for number in (3, 1):
        found = run(world, questions, tmp_path / "a", task=task, shard=Shard(number, 3))
        assert found.results.metrics == {}
        assert not (tmp_path / "a" / "results.json").exists()
    assert found.missing == 3
    last = run(world, questions, tmp_path / "a", task=task, shard=Shard(2, 3))
    assert last.missing == 0
    assert close(last.predictions, whole.predictions)
    assert last.results.skipped == whole.results.skipped
    assert last.results.skipped[0].id == "s0"
    name = "accuracy" if task == "vqa" else "cider"
    assert last.results.metrics[name] == whole.results.metrics[name]
    assert read_results(tmp_path / "a") == last.results
    assert parts(tmp_path / "a") == []
    again = run(world, questions, tmp_path / "a", task=task, shard=Shard(1, 3))
    assert again.results == last.results


def test_shards_with_other_settings_do_not_join(world, questions, tmp_path: Path):
    run(world, questions, tmp_path, shard=Shard(1, 2))
    with pytest.raises(EvaluationError, match="seed 0 -> 1"):
        run(world, questions, tmp_path, shard=Shard(2, 2), seed=1)


def test_a_run_in_shards_can_be_finished_by_one_without(
    world, questions, tmp_path: Path, kill_after
):
    run(world, questions, tmp_path, shard=Shard(2, 2))
    judged = kill_after(None)
    assert run(world, questions, tmp_path).missing == 0
    assert judged == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------- ranks


def work(number: int, world: World, questions, out: Path, store: Path) -> None:
    """One of two processes."""
    import os

    import torch.distributed as dist

    os.environ |= {"OMP_NUM_THREADS": "1"}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    found = run(world, questions, out)
    assert rank() == number
    (out.parent / f"rank{number}").write_text(json.dumps(found.results.as_dict()["metrics"]))
    leave_ranks()


def test_two_ranks_find_what_one_finds(world, questions, tmp_path: Path):
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    alone = run(world, questions)
    context = multiprocessing.get_context("fork")
    out = tmp_path / "out"
    workers = [
        context.Process(target=work, args=(i, world, questions, out, tmp_path / "store"))
        for i in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert close(read_predictions(out), alone.predictions)
    said = [json.loads((tmp_path / f"rank{i}").read_text()) for i in range(2)]
    assert said[0] == said[1] == read_results(out).as_dict()["metrics"]
    assert said[0]["accuracy"] == alone.results.as_dict()["metrics"]["accuracy"]
    assert parts(out) == []


def test_one_process_joins_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    join_ranks()
    assert rank() == 0
    leave_ranks()
