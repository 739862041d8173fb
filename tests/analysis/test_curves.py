"""Loss curves: read from a run's metrics, smoothed without delay, one panel a stage."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.analysis.curves import Curve, curves_figure, draw_curves, read_curve, running_mean
from tinyalign.errors import ConfigError

CURVE = Curve("ours", [1, 2, 3, 4], [3.0, 2.0, 1.5, 1.4], [4], [1.6])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(1, 15))
def test_a_running_mean_stays_within_its_values(values, width):
    means = running_mean(values, width)
    assert len(means) == len(values)
    assert min(values) - 1e-6 <= min(means)
    assert max(means) <= max(values) + 1e-6


def test_a_running_mean_keeps_a_straight_line_up_to_the_last_half_window():
    line = [float(i) for i in range(20)]
    assert running_mean(line, 7)[:-3] == pytest.approx(line[:-3])


def test_a_running_mean_does_not_end_in_a_single_value():
    assert running_mean([1.0] * 19 + [11.0], 9)[-1] == pytest.approx(3.0)


def test_steps_and_evaluations_are_told_apart(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curve(path, "a") == Curve("a", [1, 2], [3.0, 2.0], [2], [2.5])


def test_losses_with_memory_off_are_read_and_drawn_beside_the_others(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    lines += [{"step": n, "eval_loss": 2.5, "eval_loss_without_memory": 2.75} for n in (1, 2)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(path, "a")
    assert curve.losses_without_memory == (2.75, 2.75)
    drawn = {line.get_label() for line in curves_figure({"stage": [curve]}).axes[0].lines}
    assert {"a, held out", "a, held out, memory off"} <= drawn


def test_a_run_without_steps_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl"):
        read_curve(tmp_path / "metrics.jsonl", "a")


def test_one_panel_for_each_stage():
    figure = curves_figure({"stage 1": [CURVE], "stage 2": [CURVE, CURVE]})
    assert [ax.get_title() for ax in figure.axes] == ["stage 1", "stage 2"]


def test_one_legend_serves_all_panels():
    figure = curves_figure({"stage 1": [CURVE], "stage 2": [CURVE]})
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, False]


def test_a_wide_range_of_losses_gets_a_logarithmic_axis():
    falling = Curve("a", [1, 2, 3, 4], [9.0, 8.0, 1.0, 0.3])
    figure = curves_figure({"wide": [falling], "narrow": [CURVE]})
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear"]


def test_without_matplotlib_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr("tinyalign.analysis.curves.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install tinyalign-vlm\[plots\]"):
        curves_figure({"stage 1": [CURVE]})


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ConfigError, match="empty"):
        curves_figure({"stage 1": []})


def test_the_picture_is_written(tmp_path):
    path = draw_curves({"stage 1": [CURVE]}, tmp_path / "deep" / "curves.png", "title")
    assert path.read_bytes().startswith(b"\x89PNG")
