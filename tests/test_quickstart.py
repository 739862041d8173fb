"""The quickstart: keeps to its time, compares at equal budget, leaves what it promises."""

import importlib.util
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.data.sample import Message, Sample
from tinyalign.errors import ConfigError
from tinyalign.quickstart import (
    BASELINE_SHARE,
    FEWEST_STEPS,
    MOST_STEPS,
    TEST_QUESTIONS,
    plan_steps,
    question_alone,
    run,
)


@given(st.floats(60, 1200), st.floats(0.5, 10), st.floats(0, 60))
def test_planned_training_fits_the_time_left(left, step_seconds, overhead):
    plan = plan_steps(20, left, step_seconds, overhead)
    assert FEWEST_STEPS <= plan.steps <= MOST_STEPS
    assert plan.questions <= TEST_QUESTIONS
    needed = 2 * overhead + plan.steps * step_seconds * (1 + BASELINE_SHARE)
    assert needed <= left or plan.steps == FEWEST_STEPS


def test_the_question_alone_answers_as_training_did_most_often():
    def sample(question: str, answer: str) -> Sample:
        turns = (Message("user", question), Message("assistant", answer))
        return Sample(id=question + answer, images=(), messages=turns)

    train = [sample("colour?", "red"), sample("colour?", "blue"), sample("colour?", "blue")]
    test = [sample("colour?", "blue"), sample("colour?", "red"), sample("shape?", "blue")]
    assert question_alone(train, test) == pytest.approx(1 / 3)


def test_no_time_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="minutes"):
        run(tmp_path, minutes=0)


@pytest.mark.slow
def test_it_compares_both_arms_and_leaves_table_and_pictures(
    tmp_path, tiny_llm_dir, tiny_vision_dir, capsys, monkeypatch
):
    if importlib.util.find_spec("easy_vqa") is None:
        pytest.skip("the package easy-vqa is not installed")
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    monkeypatch.setattr("tinyalign.quickstart.MOST_STEPS", 12)
    tiny = {
        "model.vision": str(tiny_vision_dir),
        "model.language": str(tiny_llm_dir),
        "data.pretrain.limit": 48,
        "data.finetune.limit": 48,
        "data.pretrain_eval.limit": 10,
        "data.finetune_eval.limit": 10,
        "memory.entries": 40,
        "memory.compress.max_steps": 2,
        "memory.compress.vocab_size": 300,
    }
    out = tmp_path / "quickstart"
    run(out, minutes=1, device="cpu", overrides=tiny)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["arms"]) == {"baseline", "tinyalign"}
    assert 0.0 <= summary["nearest"] <= 1.0
    for arm, numbers in summary["arms"].items():
        assert numbers["metrics"]["accuracy"].keys() == {"value", "low", "high"}
        steps = [
            line
            for line in (out / arm / "metrics.jsonl").read_text().splitlines()
            if "learning_rate" in line
        ]
        assert len(steps) == 2 * summary["plan"]["steps"]
    for name in ("curves.png", "examples.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "Try next" in shown
    assert (out / "example.png").is_file()

    with pytest.raises(ConfigError, match="another folder"):
        run(out, minutes=2, device="cpu", overrides=tiny)
    plan = summary["plan"]
    capsys.readouterr()
    run(out, minutes=1, device="cpu", overrides=tiny, tell=False)  # nothing is trained again
    assert capsys.readouterr().out == ""
    assert json.loads((out / "summary.json").read_text())["plan"] == plan
