"""The quickstart: keeps to its time, compares at equal budget, leaves what it promises."""

import importlib.util
import json
import shlex
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import ConfigError
from tinyalign.evaluation.results import Prediction
from tinyalign.quickstart import run
from tinyalign.quickstart.plan import (
    ARMS,
    FEWEST_STEPS,
    MOST_STEPS,
    STAGES,
    Plan,
    Sizes,
    Speeds,
    fit_test,
    fit_training,
    make_plan,
    phases,
)
from tinyalign.quickstart.report import blind_accuracy, one_an_image

SIZES = Sizes(images=4000, pairs=38575, entries=16000, compress_steps=300, batch=16)
SPEEDS = Speeds(
    load=6.0,
    image=1 / 60,
    compress_step=0.08,
    entry=1e-3,
    query=4e-4,
    steps={
        "baseline": {"pretrain": 0.6, "finetune": 1.1},
        "tinyalign": {"pretrain": 1.0, "finetune": 1.8},
    },
    question={"baseline": 0.04, "tinyalign": 0.07},
)


def total(plan: Plan, speeds: Speeds, sizes: Sizes = SIZES) -> float:
    return sum(phase.seconds for phase in phases(plan, speeds, sizes))


positive = st.floats(1e-6, 5.0)
speeds = st.builds(
    Speeds,
    load=st.floats(0.1, 60),
    image=positive,
    compress_step=positive,
    entry=st.floats(1e-6, 0.1),
    query=st.floats(1e-7, 0.01),
    steps=st.fixed_dictionaries(
        {arm: st.fixed_dictionaries(dict.fromkeys(STAGES, positive)) for arm in ARMS}
    ),
    question=st.fixed_dictionaries(dict.fromkeys(ARMS, positive)),
)


@given(speeds, st.floats(30, 3600))
def test_a_plan_takes_no_longer_than_it_may(measured, seconds):
    try:
        plan = make_plan(measured, SIZES, seconds)
    except ConfigError:
        assume(False)
    assert total(plan, measured) <= seconds + 1e-6
    assert FEWEST_STEPS <= plan.steps <= MOST_STEPS
    assert plan.images <= SIZES.images
    assert plan.entries <= plan.pairs <= SIZES.pairs


@given(speeds, st.floats(30, 3600))
def test_a_plan_made_again_with_less_time_left_still_fits(measured, seconds):
    plan = Plan(images=1, pairs=1, compress_steps=1, entries=1, steps=99, questions=50)
    try:
        fitted = fit_training(plan, measured, SIZES, seconds)
    except ConfigError:
        assume(False)
    still_to_do = [p.seconds for p in phases(fitted, measured, SIZES)[3:]]
    assert sum(still_to_do) <= seconds + 1e-6


def test_on_two_cores_twenty_minutes_are_enough_for_everything():
    plan = make_plan(SPEEDS, SIZES, 0.92 * 1200)
    assert (plan.images, plan.pairs, plan.entries) == (4000, 38575, 16000)
    assert plan.steps > 120
    assert plan.questions >= 500


def test_more_time_means_more_steps_not_more_of_one_arm():
    short, long = (make_plan(SPEEDS, SIZES, 60 * minutes) for minutes in (8, 16))
    assert long.steps > short.steps
    seconds = {p.name: p.seconds for p in phases(long, SPEEDS, SIZES)}
    assert seconds["tinyalign"] > seconds["baseline"]  # equal steps, more tokens


def test_a_machine_that_is_too_slow_is_told_so_at_once():
    slow = replace(SPEEDS, steps={arm: dict.fromkeys(STAGES, 60.0) for arm in ARMS})
    with pytest.raises(ConfigError, match=r"too short by about \d+\.\d min"):
        make_plan(slow, SIZES, 600)


def test_a_test_always_has_questions():
    plan = make_plan(SPEEDS, SIZES, 600)
    assert fit_test(plan, SPEEDS, -100.0).questions == 50
    assert fit_test(plan, SPEEDS, 1e6).questions == 1000


def test_no_time_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="minutes"):
        run(tmp_path, minutes=0)


def question(text: str, answer: str) -> Sample:
    messages = (Message("user", text), Message("assistant", answer))
    return Sample("x", (ImageRef("a.png"),), messages)


def predicted(image: str, text: str, answer: str) -> Prediction:
    return Prediction(f"{image} {text}", image, text, "?", (answer,), 1.0, 1)


def test_the_question_alone_gets_its_most_frequent_answer():
    train = [question("red?", "no"), question("red?", "no"), question("red?", "yes")]
    asked = [predicted("1", "red?", "no"), predicted("2", "red?", "yes")]
    assert blind_accuracy(train, asked).value == 0.5


def test_a_question_never_seen_gets_the_most_frequent_answer_of_all():
    train = [question("red?", "no"), question("red?", "no"), question("what?", "blue")]
    assert blind_accuracy(train, [predicted("1", "new?", "no")]).value == 1.0


def test_the_sheet_shows_each_image_once():
    asked = [predicted("1", "a", "no"), predicted("1", "b", "no"), predicted("2", "a", "no")]
    assert [p.id for p in one_an_image(asked)] == ["1 a", "2 a"]


@pytest.fixture
def tiny(tiny_llm_dir, tiny_vision_dir, monkeypatch):
    """Overrides that make everything small."""
    for package in ("easy_vqa", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    monkeypatch.setattr("tinyalign.quickstart.plan.MOST_STEPS", 12)
    return {
        "model.vision": str(tiny_vision_dir),
        "model.language": str(tiny_llm_dir),
        "data.pretrain.limit": 200,
        "data.finetune.limit": 200,
        "data.pretrain_eval.limit": 10,
        "data.finetune_eval.limit": 10,
        "memory.entries": 150,
        "memory.compress.max_steps": 2,
        "memory.compress.vocab_size": 300,
    }


@pytest.mark.slow
def test_it_compares_both_arms_and_leaves_table_and_pictures(tmp_path, tiny, capsys):
    out = tmp_path / "quickstart"
    assert run(out, minutes=1, device="cpu", overrides=tiny) == out
    summary = json.loads((out / "summary.json").read_text())
    shown = capsys.readouterr().out

    assert summary["plan"]["steps"] == 12
    batches = {}
    for arm in ARMS:
        numbers = summary["arms"][arm]
        assert numbers["metrics"]["accuracy"].keys() == {"value", "low", "high"}
        assert numbers["seconds"] > 0
        lines = [json.loads(x) for x in (out / arm / "metrics.jsonl").read_text().splitlines()]
        batches[arm] = [(x["samples"], x["supervised_tokens"]) for x in lines if "loss" in x]
        assert len(batches[arm]) == 2 * summary["plan"]["steps"]
    assert batches["baseline"] == batches["tinyalign"], "the same samples in the same order"
    assert 0 <= summary["perceiver"]["token_accuracy"] <= 1
    assert summary["difference"]["accuracy"]["low"] <= summary["difference"]["accuracy"]["high"]
    for name in ("curves.png", "examples.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")

    assert shown.index("the plan") < shown.index("[1/7]") < shown.index("[7/7]")
    assert shown.index("[7/7]") < shown.index("question alone") < shown.index("Try next")
    lines = [line.strip() for line in shown.splitlines()]
    commands = [shlex.split(x, comments=True) for x in lines if x.startswith("tinyalign ")]
    assert [words[1] for words in commands] == ["ask", "evaluate", "train"]

    first = {arm: (out / arm / "finetune" / "finished.json").read_bytes() for arm in ARMS}
    run(out, minutes=1, device="cpu", overrides=tiny)  # once more: nothing is trained again
    assert first == {arm: (out / arm / "finetune" / "finished.json").read_bytes() for arm in ARMS}
    assert json.loads((out / "summary.json").read_text())["arms"] == summary["arms"]
    with pytest.raises(ConfigError, match="other settings"):
        run(out, minutes=1, seed=1, device="cpu", overrides=tiny)


@pytest.mark.slow
def test_the_three_commands_work(tmp_path, tiny, capsys, monkeypatch):
    from tinyalign.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYALIGN_CACHE", str(tmp_path / "cache"))
    run(minutes=1, device="cpu", overrides=tiny)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    commands = [shlex.split(x, comments=True) for x in lines if x.startswith("tinyalign ")]
    small = [item for name, value in tiny.items() for item in (f"--{name}", str(value))]
    for words in commands:
        extra = [*small, "--pretrain.max_steps", "2"] if words[1] == "train" else []
        monkeypatch.setattr("sys.argv", [*words, *extra, "--device", "cpu"])
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
        assert not code, shlex.join(words)
