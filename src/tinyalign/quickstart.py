"""The whole method on small real models: easy-VQA, with memory and without, at equal budget.

Everything comes from packages; nothing is downloaded. Finished phases are found again when the
quickstart is run once more in the same folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from tinyalign.analysis.contact_sheet import Card, Remembered, Said, contact_sheet
from tinyalign.analysis.curves import draw_curves, read_curve, require_matplotlib
from tinyalign.analysis.peak_ram import PeakMemory
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError
from tinyalign.evaluation.comparison import compare
from tinyalign.evaluation.controls.look_up import LOOK_UPS, look_up
from tinyalign.evaluation.results import Prediction, Results, read_predictions, read_results
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.evaluation.tasks import score
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.model.device import choose_device, multiplies_bfloat16
from tinyalign.serving.load import load
from tinyalign.training.caches.features import Features, FeatureSource
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.prepare_memory import MemoryPreparer
from tinyalign.training.recipe.files import load_recipe
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import draw, open_source
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun

RECIPE = "smollm2-135m-efficientnet-easy-vqa"
ARMS = {"baseline": "baseline (no memory)", "tinyalign": "TinyAlign"}
ALONE = {
    "question_alone": "the question alone (no model)",
    "nearest": "the most similar memory's answer (no model)",
    "consensus": "the answer that most neighbours give (no model)",
}
NAMES = {"baseline": "baseline", "tinyalign": "TinyAlign"}
PLAN = "plan.json"
SUMMARY = "summary.json"
EXAMPLE = "example.png"
PROBE_STEPS = 6
FEWEST_STEPS, MOST_STEPS = 10, 400
BASELINE_SHARE = 0.7
"""A baseline step costs about so much of one with memory, which has more tokens."""
EVALUATION_SHARE = 0.16
"""Of the time that is left after the probe, kept for judging both arms."""
TEST_QUESTIONS = 600
SHOWN = 12


@dataclass
class Clock:
    """Time used and time left of a budget."""

    minutes: float
    started: float

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.monotonic() - self.started)

    def say(self, phase: int, of: int, text: str) -> None:
        """Announce a phase with the time that is left."""
        logger.info("[%d/%d] %s (at most %.0f min left)", phase, of, text, max(1, self.left / 60))


@dataclass(frozen=True)
class Plan:
    """What the probe decided: equal for both arms."""

    steps: int
    questions: int
    minutes: float
    """The budget it was made for."""


def run(
    out: Path = Path("quickstart"),
    minutes: float = 20,
    seed: int = 0,
    device: str = "auto",
    overrides: dict[str, Any] | None = None,
    tell: bool = True,
) -> Path:
    """Perceiver, bank, neighbours, both stages of both arms, evaluation, table and pictures.

    minutes: the time to stay within on two CPU cores; the steps of both arms follow from a timed
    probe. overrides: further recipe settings, as `load_recipe` takes them. tell: print the table
    and what to try next. Returns `out`, which then holds summary.json, curves.png, examples.png,
    and a run folder for each arm.

    Raises ConfigError without matplotlib or for a budget that is no time at all.
    """
    if minutes <= 0:
        raise ConfigError(f"minutes must be positive, found {minutes}")
    require_matplotlib()
    clock = Clock(minutes, time.monotonic())
    out.mkdir(parents=True, exist_ok=True)
    base = _recipe(out, seed, device, overrides or {})
    logger.info(
        "quickstart: %s + %s on easy-VQA, once without memory and once with it, in %s",
        base.model.language, base.model.vision, out,
    )  # fmt: skip
    logger.info(
        "plan: features, Perceiver and bank first, then a probe of the speed, both stages of both "
        "arms at equal steps, and a test of both; at most %.0f minutes on two cores", minutes,
    )  # fmt: skip
    clock.say(1, 5, "frozen features, the Perceiver, the memory bank and neighbours")
    bank, features = _prepare(base, out)
    plan = _plan(base, out, clock)
    costs = _train_arms(base, out, plan, clock)
    clock.say(5, 5, f"asking both models {plan.questions} questions of the official test split")
    test = draw(open_source(_test_source(base), seed), plan.questions, seed)
    seen = features.cover(test)
    judged = {arm: _judge(arm, out, test, seen, base, seed) for arm in ARMS}
    _pictures(out, judged, test, bank)
    alone = {"question_alone": question_alone(open_source(base.data.pretrain, seed), test)}
    for kind in LOOK_UPS:
        told = score("easy_vqa", look_up(judged["tinyalign"][1], kind), seed=seed)
        alone[kind] = told.metrics["accuracy"].value
    summary = _summarise(out, plan, alone, judged, costs, clock)
    shutil.copyfile(str(test[0].images[0].path), out / EXAMPLE)
    if tell:
        _show(summary)
        _next_steps(out, test[0])
    return out


def _recipe(out: Path, seed: int, device: str, overrides: dict[str, Any]) -> Recipe:
    settings = {"seed": seed, "device": device, "data.cache_folder": str(out / "cache")}
    if not multiplies_bfloat16(choose_device(device)):
        settings["model.dtype"] = "float32"
    return load_recipe(RECIPE, {**settings, **overrides})


def _test_source(base: Recipe) -> Any:
    source = base.data.finetune_eval
    if source is None:
        raise ConfigError(f"recipe {RECIPE}: expected data.finetune_eval to judge on, found none")
    return replace(source, limit=None)


def _arm(base: Recipe, out: Path, arm: str, steps: int) -> Recipe:
    recipe = replace(base, output=str(out / arm))
    for stage in ("pretrain", "finetune"):
        args = replace(getattr(base, stage), max_steps=steps, checkpoint_steps=100)
        recipe = replace(recipe, **{stage: args})
    return recipe.with_k(0) if arm == "baseline" else recipe


# -- phases ------------------------------------------------------------------------------------


def _prepare(base: Recipe, out: Path) -> tuple[MemoryBank, FeatureSource]:
    """Everything that is computed once; the arms find it in the cache."""
    folder = out / "prepared"
    folder.mkdir(exist_ok=True)
    prepared = replace(base, output=str(folder))
    stage_run = StageRun(prepared, RunFolder(prepared), "pretrain")
    preparer: MemoryPreparer = stage_run.memory
    bank = preparer.bank()
    stage_run.dataset(base.data.pretrain)
    return bank, stage_run.features


def _plan(base: Recipe, out: Path, clock: Clock) -> Plan:
    """Steps that fit the time left, from a few timed steps of both stages with memory."""
    path = out / PLAN
    if path.is_file():
        found = Plan(**json.loads(path.read_text(encoding="utf-8")))
        if found.minutes != clock.minutes:
            raise ConfigError(
                f"{out}: holds a quickstart of {found.minutes:g} minutes, not of "
                f"{clock.minutes:g}; name another folder with --out, or remove this one"
            )
        return found
    clock.say(2, 5, "timing a few steps of both stages")
    began = time.monotonic()
    probe = _arm(base, out, "probe", PROBE_STEPS)
    probe = replace(probe, data=replace(probe.data, pretrain_eval=None, finetune_eval=None))
    train(probe, resume=False)
    overhead = time.monotonic() - began
    seconds = [_step_seconds(out / "probe" / s) for s in ("pretrain", "finetune")]
    shutil.rmtree(out / "probe", ignore_errors=True)
    loading = overhead - PROBE_STEPS * sum(seconds)
    plan = plan_steps(clock.minutes, clock.left, sum(seconds), loading)
    path.write_text(json.dumps(vars(plan)), encoding="utf-8")
    logger.info(
        "plan: %.1f s a step of both stages with memory, so %d steps a stage and arm",
        sum(seconds), plan.steps,
    )  # fmt: skip
    return plan


def plan_steps(minutes: float, left: float, step_seconds: float, overhead: float) -> Plan:
    """How many steps and questions fit into the `left` seconds of a budget of `minutes`.

    step_seconds: a step of stage 1 and one of stage 2, with memory; overhead: loading and saving
    of the two stages of one arm. Both arms take the same number of steps.
    """
    for_training = left * (1 - EVALUATION_SHARE) - 2 * max(0.0, overhead)
    steps = int(for_training / (step_seconds * (1 + BASELINE_SHARE)))
    steps = max(FEWEST_STEPS, min(MOST_STEPS, steps))
    # Asking a question costs about as much as training on one in stage 1.
    questions = int(left * EVALUATION_SHARE / (2 * step_seconds / 16))
    return Plan(steps, max(50, min(TEST_QUESTIONS, questions)), minutes)


def _step_seconds(folder: Path) -> float:
    """Median seconds a step, the first left out."""
    at = [line["seconds"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    steps = sorted(b - a for a, b in pairwise(at))
    return steps[len(steps) // 2]


def _train_arms(base: Recipe, out: Path, plan: Plan, clock: Clock) -> dict[str, dict[str, float]]:
    """Seconds of training and peak memory of each arm."""
    costs: dict[str, dict[str, float]] = {}
    for number, arm in enumerate(ARMS, start=3):
        clock.say(number, 5, f"training {ARMS[arm]}, {plan.steps} steps a stage")
        note = out / arm / "cost.json"
        with PeakMemory() as memory:
            done = train(_arm(base, out, arm, plan.steps))
        if not note.is_file():
            seconds = sum(stage.seconds for stage in done.stages)
            cost = {"seconds": seconds, "memory_gb": memory.gigabytes}
            note.write_text(json.dumps(cost), encoding="utf-8")
        costs[arm] = json.loads(note.read_text(encoding="utf-8"))
    return costs


def _judge(
    arm: str, out: Path, test: Sequence[Sample], features: Features, base: Recipe, seed: int
) -> tuple[Results, list[Prediction]]:
    path = out / arm / "test" / "results.json"
    if not path.is_file():
        run_folder = out / arm
        loaded = load(run_folder, None if arm == "baseline" else run_folder, device=base.device)
        evaluate(
            loaded.model, loaded.processor, test, task="easy_vqa", retriever=loaded.retriever,
            batch_size=32, seed=seed, out=path, cached_features=features,
        )  # fmt: skip
    return read_results(path), read_predictions(path.parent / "predictions.jsonl")


def question_alone(train_samples: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Accuracy of the most frequent training answer to the same question, image unseen."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train_samples:
        answers[sample.instruction][sample.answer] += 1
    right = [
        sample.instruction in answers
        and answers[sample.instruction].most_common(1)[0][0] == sample.answer
        for sample in test
    ]
    return sum(right) / len(right)


# -- what the user sees ------------------------------------------------------------------------


def _pictures(
    out: Path,
    judged: dict[str, tuple[Results, list[Prediction]]],
    test: Sequence[Sample],
    bank: MemoryBank,
) -> None:
    panels = {
        title: [read_curve(out / arm / stage / "metrics.jsonl", name) for arm, name in ARMS.items()]
        for stage, title in (
            ("pretrain", "stage 1: connectors"),
            ("finetune", "stage 2: connectors and LLM"),
        )
    }
    draw_curves(panels, out / "curves.png", "easy-VQA, SmolLM2-135M + EfficientNet-Lite2")
    samples = {sample.id: sample for sample in test}
    by_arm = {arm: {p.id: p for p in predictions} for arm, (_, predictions) in judged.items()}
    cards = [
        _card(samples[p.id], {arm: by_arm[arm][p.id] for arm in ARMS}, bank)
        for p in _one_an_image(judged["tinyalign"][1])[:SHOWN]
    ]
    sheet = contact_sheet(
        cards,
        "Questions of the official test split",
        "what both models answer, and the memories TinyAlign read",
    )
    sheet.save(out / "examples.png")


def _one_an_image(predictions: Sequence[Prediction]) -> list[Prediction]:
    return list({p.image_id: p for p in reversed(predictions)}.values())[::-1]


def _card(sample: Sample, said: dict[str, Prediction], bank: MemoryBank) -> Card:
    remembered = said["tinyalign"]
    rows = [bank.rows_of([name], []) for name in remembered.memory_ids]
    entries = [bank.entry(row[0]) for row in rows if row]
    return Card(
        image=Image.open(str(sample.images[0].path)).convert("RGB"),
        question=sample.instruction,
        answer=sample.answer,
        said=tuple(
            Said(NAMES[arm], p.prediction, p.scores.get("accuracy", 0.0) > 0.5)
            for arm, p in said.items()
        ),
        memories=tuple(
            Remembered(entry.text, score, _thumbnail(entry.image_ref))
            for entry, score in zip(entries, remembered.memory_scores)
        ),
    )


def _thumbnail(path: str) -> Image.Image | None:
    return Image.open(path).convert("RGB") if Path(path).is_file() else None


def _summarise(
    out: Path,
    plan: Plan,
    alone: dict[str, float],
    judged: dict[str, tuple[Results, list[Prediction]]],
    costs: dict[str, dict[str, float]],
    clock: Clock,
) -> dict[str, Any]:
    """Write summary.json; returns its content."""
    summary: dict[str, Any] = {"plan": vars(plan), **alone, "arms": {}}
    for arm in ARMS:
        metrics = {key: value.as_dict() for key, value in judged[arm][0].metrics.items()}
        summary["arms"][arm] = {"metrics": metrics, **costs[arm]}
    ours, base = [judged["tinyalign"][1]], [judged["baseline"][1]]
    summary["difference"] = {
        "accuracy": compare(ours, base, "accuracy").as_dict(),
        "loss": compare(ours, base, "loss", relative=True).as_dict(),
    }
    summary["seconds"] = round(60 * clock.minutes - clock.left)
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _show(summary: dict[str, Any]) -> None:
    """The summary as a table, and the difference of the arms in a sentence."""
    table = Table(title=f"easy-VQA, official test split, {summary['plan']['questions']} questions")
    for name in ("", "accuracy [95 %]", "loss a token [95 %]", "training", "peak memory"):
        table.add_column(name, justify="left" if not name else "right")
    for key, name in ALONE.items():
        table.add_row(name, f"{summary[key]:.1%}", "", "", "")
    for arm, name in ARMS.items():
        found = summary["arms"][arm]
        table.add_row(
            name,
            "{value:.1%} [{low:.1%}, {high:.1%}]".format(**found["metrics"]["accuracy"]),
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found["metrics"]["loss"]),
            f"{found['seconds']:.0f} s",
            f"{found['memory_gb']:.1f} GB",
        )
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    gap = "{value:+.1%} [{low:+.1%}, {high:+.1%}]".format(**summary["difference"]["accuracy"])
    console.print(
        f"TinyAlign against the baseline: {gap}, paired over images. "
        f"Whole quickstart: {summary['seconds'] / 60:.1f} min."
    )


def _next_steps(out: Path, sample: Sample) -> None:
    picture, ours = out / EXAMPLE, out / "tinyalign"
    lines = [
        f"Loss curves: {out / 'curves.png'}    examples: {out / 'examples.png'}",
        "",
        "Try next:",
        f'  tinyalign ask --model {ours} --bank {ours} --image {picture} "{sample.instruction}" '
        "--show-memories",
        f"  tinyalign evaluate --model {ours} --bank {ours} --task easy_vqa --data easy_vqa "
        f"--limit 200 --out {out / 'again' / 'results.json'}",
        f"  tinyalign train --config {RECIPE} --data.pretrain.path YOUR_PAIRS.json "
        "--data.finetune.path YOUR_CONVERSATIONS.json --out runs/mine",
    ]
    Console(soft_wrap=True).print("\n".join(lines), markup=False, highlight=False)


__all__ = ["Plan", "plan_steps", "run"]
