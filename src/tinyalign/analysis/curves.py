"""Loss curves: a panel a stage, a colour a run; training loss smoothed, held-out loss on top."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinyalign.errors import ConfigError
from tinyalign.training.metering.metrics_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito: told apart by colour-blind readers too.
COLOURS = ("#6b7280", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SMOOTHING = 0.08
"""Width of the running mean, as a share of the steps."""
PANEL = (5.6, 3.9)  # inches
LOG_FROM = 8.0  # losses that span more than this factor are shown on a logarithmic axis


@dataclass(frozen=True)
class Curve:
    """One run's losses, nats a supervised token."""

    label: str
    steps: Sequence[float]
    losses: Sequence[float]
    """Of the training batches, one a step."""
    eval_steps: Sequence[float] = ()
    eval_losses: Sequence[float] = ()
    """Of held-out samples."""
    losses_without_memory: Sequence[float] = ()
    """Of the same samples at the same steps with memory off, where a run measured that."""


def read_curve(metrics: str | Path, label: str) -> Curve:
    """The curve in a run folder's metrics.jsonl. ConfigError where there is no step in it."""
    lines = read_metrics(metrics)
    steps = [line for line in lines if "loss" in line]
    watched = [line for line in lines if "eval_loss" in line]
    if not steps:
        raise ConfigError(f"{metrics}: expected steps with a loss, found none; train first")
    return Curve(
        label,
        [line["step"] for line in steps],
        [line["loss"] for line in steps],
        [line["step"] for line in watched],
        [line["eval_loss"] for line in watched],
        tuple(x["eval_loss_without_memory"] for x in watched if "eval_loss_without_memory" in x),
    )


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over a window of `width` values around each one.

    At the start, where a loss falls fast, the window is narrower, so that the curve is not late;
    at the end it is what is left of it.
    """
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    half = max(0, width - 1) // 2
    means = []
    for i in range(len(values)):
        first = i - min(half, i)
        last = min(2 * i - first, len(values) - 1)
        means.append((sums[last + 1] - sums[first]) / (last - first + 1))
    return means


def require_matplotlib() -> None:
    """Raise ConfigError with the command to run, unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "figures need matplotlib, which is not installed; "
            "install it with `pip install tinyalign-vlm[plots]`"
        )


def curves_figure(panels: Mapping[str, Sequence[Curve]], title: str = "") -> Figure:
    """A figure with one panel for each entry; a label has the same colour in all of them."""
    require_matplotlib()
    from matplotlib.figure import Figure

    if not panels or not all(panels.values()):
        raise ConfigError("expected one panel or more with curves in each, found an empty one")
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    colour = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    size = (PANEL[0] * len(panels), PANEL[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (name, curves) in zip(axes, panels.items()):
        for curve in curves:
            _draw(ax, curve, colour[curve.label])
        _finish(ax, name, curves)
    axes[0].set_ylabel("loss (nats a token)")
    axes[0].legend(frameon=False, fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def draw_curves(panels: Mapping[str, Sequence[Curve]], out: str | Path, title: str = "") -> Path:
    """Write `curves_figure` as a picture; the suffix of `out` decides the format."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    curves_figure(panels, title).savefig(path)
    return path


def _draw(ax: Axes, curve: Curve, colour: str) -> None:
    width = max(3, round(SMOOTHING * len(curve.losses)))
    ax.plot(curve.steps, curve.losses, color=colour, alpha=0.16, linewidth=0.8)
    ax.plot(
        curve.steps, running_mean(curve.losses, width), color=colour, linewidth=1.5,
        label=f"{curve.label}, training",
    )  # fmt: skip
    if curve.eval_steps:
        ax.plot(
            curve.eval_steps, curve.eval_losses, color=colour, linewidth=1.2, linestyle=(0, (2, 2)),
            marker="o", markersize=5, markeredgecolor="white", label=f"{curve.label}, held out",
        )  # fmt: skip
    if len(curve.losses_without_memory) == len(curve.eval_steps) > 0:
        ax.plot(
            curve.eval_steps, curve.losses_without_memory, color=colour, linewidth=1.2,
            linestyle=(0, (1, 2)), marker="s", markersize=4, markeredgecolor="white",
            label=f"{curve.label}, held out, memory off",
        )  # fmt: skip


def _finish(ax: Axes, name: str, curves: Sequence[Curve]) -> None:
    ax.set_title(name, fontsize=10.5)
    ax.set_xlabel("step")
    shown = [
        loss
        for curve in curves
        for loss in (
            *running_mean(curve.losses, 3)[1:],
            *curve.eval_losses,
            *curve.losses_without_memory,
        )
        if loss > 0
    ]
    if shown and max(shown) > LOG_FROM * min(shown):
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(min(shown) / 1.2, max(shown) * 1.2)
    ax.grid(True, color="#e5e7eb", linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
