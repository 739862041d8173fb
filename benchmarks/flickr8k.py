"""What memory buys on Flickr8k, beside the controls that tell memory from extra tokens.

    python benchmarks/flickr8k.py run [--arms A B ...] [--seeds 0 1 2] [--workers 2] [--set A=B]
    python benchmarks/flickr8k.py run --half ...
    python benchmarks/flickr8k.py report

Arms without a finished run are left out of the report. `--half` trains the first half of the same
schedule only, into a folder of its own: enough for captions at 25 and 50 %, which the report
takes from there for runs that have none of their own.

`run` trains every arm with every seed at equal steps and equal everything else (the shipped recipe
smollm2-135m-efficientnet-flickr8k, one pass over 6,000 photos) and judges it on the dev split;
what is finished already is not run again. `report` writes the table, its numbers and the loss
curves into benchmarks/results/. Photos and captions are read from ../shared/data/flickr8k.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "flickr8k"
HALVES = RUNS.with_name("flickr8k-half")
RECIPE = "smollm2-135m-efficientnet-flickr8k"
DEV = "../shared/data/flickr8k/dev.parquet"
ALIGNED = {  # of all arms but the last: the recipe as it was before joint keys
    "memory.key.kind": "aligned",
    "memory.order": "similarity",
    "memory.neighbours": 10,
    "memory.copy": 0,
}
OWN_PERCEIVER = {  # of the forms that read latents through a map of their own
    "memory.fusion.word_skip": False,
    "memory.fusion.hidden_size": None,
    "memory.perceiver.random_texts": 0.0,
    "memory.perceiver.silence": False,
    "memory.perceiver.epochs": 1,
}
PAPER_FORM = {
    **OWN_PERCEIVER,
    "memory.fusion.form": "width",
    "memory.key.kind": "pooled",
    "memory.fusion.latents_used": 32,
    "memory.fusion.args": {},
    "memory.drop_probability": 0.0,
}
LINEAR = {  # as many trained parameters as the best form
    **OWN_PERCEIVER,
    "memory.k": 3,
    "memory.fusion.linear_skip": True,
    "memory.fusion.args": {"prompt_tokens": 32},
}
SEQUENCE = {
    **LINEAR,
    "memory.fusion.latents_used": 16,
    "memory.fusion.args": {},
    "memory.drop_probability": 0.0,
}
PROMPT = {"prompt_tokens": 32, "prompt_hidden_size": 1536}
RANDOM = {"memory.control": "random"}
UNTRAINED = {"memory.control": "untrained_perceiver"}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("baseline: no memory", {**SEQUENCE, "memory.k": 0}),
    "soft_prompt": (
        "control: soft prompt, as many parameters as the paper's form",
        {**PAPER_FORM, "memory.control": "soft_prompt"},
    ),
    "soft_prompt_large": (
        "control: soft prompt, as many parameters as the best form",
        {**PAPER_FORM, "memory.control": "soft_prompt", "memory.fusion.hidden_size": 1578},
    ),
    "random": ("control: best form, random neighbours", RANDOM),
    "untrained": ("control: best form, untrained Perceiver", UNTRAINED),
    "paper": ("TinyAlign, the paper's width fusion", PAPER_FORM),
    "sequence_random": ("linear skip, random neighbours", {**SEQUENCE, **RANDOM}),
    "sequence": ("linear skip", SEQUENCE),
    "linear_random_no_drop": (
        "linear skip and a prompt, random neighbours",
        {**LINEAR, **RANDOM, "memory.drop_probability": 0.0},
    ),
    "linear_no_drop": ("linear skip and a prompt", {**LINEAR, "memory.drop_probability": 0.0}),
    "linear_random": ("linear skip, prompt, drop-out, random neighbours", {**LINEAR, **RANDOM}),
    "linear_untrained": (
        "linear skip, prompt, drop-out, untrained Perceiver",
        {**LINEAR, **UNTRAINED},
    ),
    "linear": ("linear skip, prompt, drop-out", LINEAR),
    "words": ("words, k = 3, prompt first", {"memory.k": 3, "memory.fusion.args": PROMPT}),
    "words_last": (
        "words, k = 3, prompt last",
        {"memory.k": 3, "memory.fusion.args": {**PROMPT, "prompt_last": True}},
    ),
    "words_nearest": ("words, k = 3, prompt and nearest last", {"memory.k": 3}),
    "best": ("TinyAlign, best form", {}),
}
ARMS = {arm: (label, {**ALIGNED, **settings}) for arm, (label, settings) in ARMS.items()}
ARMS["consensus"] = ("TinyAlign, best form, joint keys, memories by consensus, copying", {})
LINES = {  # of the picture
    "baseline": "#888888",
    "soft_prompt": "#b07aa1",
    "soft_prompt_large": "#d4a6c8",
    "random": "#edc948",
    "untrained": "#e15759",
    "paper": "#4e79a7",
    "linear": "#8fd19e",
    "best": "#2b8a3e",
}
DRAWN = {"linear": "TinyAlign, linear skip, prompt, drop-out"}


def run_one(arm: str, seed: int, captions: int, settings: dict[str, str], half: bool) -> None:
    """Train one arm with one seed and caption the first `captions` dev photos, part way too."""
    from tinyalign.log import setup_logging
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train

    setup_logging()
    folder = (HALVES if half else RUNS) / f"{arm}-{seed}"
    own = {"pretrain.save_fractions": [0.25, 0.5], "seed": seed, "output": str(folder)}
    recipe = load_recipe(RECIPE, {**ARMS[arm][1], **own, **settings})
    with stopping_half_way() if half else nullcontext():
        done = train(recipe)
    models = {model: f"captions-{model.name[6:]}" for model in folder.glob("model-[0-9]*")}
    for model, name in {**models, **({} if half else {done.model: "captions"})}.items():
        out = folder / name / "results.json"
        if captions and not out.is_file():
            caption(model, done.bank if recipe.memory.reads_bank else None, recipe, captions, out)


@contextmanager
def stopping_half_way() -> Iterator[None]:
    """Stages end after half of their schedule, which stays that of the whole."""
    from transformers import TrainerCallback

    from tinyalign.training.stage_run import StageRun

    class StopHalfWay(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step >= round(0.5 * state.max_steps)

    whole = StageRun._trainer

    def half(self: Any, *args: Any) -> Any:
        trainer = whole(self, *args)
        trainer.add_callback(StopHalfWay())
        return trainer

    with patch.object(StageRun, "_trainer", half):
        yield


def caption(model_folder: Path, bank: Path | None, recipe: Any, captions: int, out: Path) -> None:
    """Caption dev photos with a saved model."""
    from tinyalign.data.readers import open_dataset
    from tinyalign.evaluation.controls.retrievers import RandomMemories
    from tinyalign.evaluation.running.runner import evaluate
    from tinyalign.memory.attach import attach_memory
    from tinyalign.model.modeling import TinyAlignForConditionalGeneration
    from tinyalign.model.processing import TinyAlignProcessor

    model = TinyAlignForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = TinyAlignProcessor.from_pretrained(model_folder)
    retriever = None if bank is None else attach_memory(model, processor, bank)
    if recipe.memory.control == "random":
        retriever = RandomMemories(retriever, seed=recipe.seed)
    samples = open_dataset(DEV, captions="first", limit=captions)
    evaluate(
        model, processor, samples, task="caption", retriever=retriever, batch_size=50,
        max_new_tokens=24, out=out,
    )  # fmt: skip


def run_all(
    arms: list[str],
    seeds: list[int],
    workers: int,
    captions: int,
    settings: list[str],
    half: bool,
) -> None:
    """Every arm and seed, `workers` at a time, each in a process of its own."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    runs = HALVES if half else RUNS
    runs.mkdir(parents=True, exist_ok=True)

    def work(job: tuple[str, int]) -> int:
        arm, seed = job
        own = ["--arms", arm, "--seeds", str(seed), "--captions", str(captions)]
        own += [part for setting in settings for part in ("--set", setting)]
        own += ["--half"] if half else []
        with open(runs / f"{arm}-{seed}.log", "a") as log:
            command = [sys.executable, __file__, "one", *own]
            code = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
        print(f"{arm} seed {seed}: {'done' if code == 0 else f'failed, see {log.name}'}")
        return code

    jobs = [(arm, seed) for seed in seeds for arm in arms]
    with ThreadPoolExecutor(workers) as pool:
        codes = list(pool.map(work, jobs))
    if any(codes):
        raise SystemExit(1)


# -- report ------------------------------------------------------------------------------------


def losses(arm: str, seed: int) -> dict[int, dict[str, tuple[float, int]]]:
    """Step -> sample id -> (summed loss, tokens) of a finished run."""
    found: dict[int, dict[str, tuple[float, int]]] = {}
    for path in (RUNS / f"{arm}-{seed}").glob("eval-*.jsonl"):
        found[int(path.stem.split("-")[1])] = read_losses(path)
    return dict(sorted(found.items()))


def read_losses(path: Path) -> dict[str, tuple[float, int]]:
    """Sample id -> (summed loss, tokens) of one evaluation."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: (row["loss_sum"], row["tokens"]) for row in rows}


def mean_loss(rows: dict[str, tuple[float, int]]) -> float:
    """Nats a token."""
    return sum(loss for loss, _ in rows.values()) / sum(tokens for _, tokens in rows.values())


def finished() -> dict[str, list[int]]:
    """Seeds of each arm that have run."""
    seeds: dict[str, list[int]] = {}
    for arm in ARMS:
        paths = RUNS.glob(f"{arm}-[0-9]*/finished.json")
        seeds[arm] = sorted(int(path.parent.name.rsplit("-", 1)[1]) for path in paths)
    return {arm: found for arm, found in seeds.items() if found}


def summarise() -> dict[str, Any]:
    """Losses with paired differences to every other arm, and captions, for each finished arm."""
    import numpy as np

    from tinyalign.evaluation.metrics.intervals import interval, paired_difference

    runs = {arm: {s: losses(arm, s) for s in seeds} for arm, seeds in finished().items()}
    ids = list(next(iter(next(iter(next(iter(runs.values())).values())).values())))

    def stacked(arm: str, step: int, seeds: list[int]) -> Any:
        return np.array([[runs[arm][s][step][i] for i in ids] for s in seeds])

    summary: dict[str, Any] = {"machine": machine(), "arms": {}}
    for arm, by_seed in runs.items():
        seeds = sorted(by_seed)
        steps = sorted(by_seed[seeds[0]])
        entry: dict[str, Any] = {"form": ARMS[arm][0], "seeds": seeds, "loss": {}, "below": {}}
        for step in steps:
            own = interval(stacked(arm, step, seeds))
            entry["loss"][step] = [own.value, own.low, own.high]
        for other in runs:
            both = sorted(set(seeds) & set(runs[other]))
            if other == arm or not both:
                continue
            entry["below"][other] = {}
            for step in steps:
                gap = paired_difference(
                    stacked(arm, step, both), stacked(other, step, both), relative=True
                )
                entry["below"][other][step] = [gap.value, gap.low, gap.high]
        entry["captions"] = {step: captions_of(arm, seeds, step) for step in steps}
        entry["seconds"] = [
            json.loads((RUNS / f"{arm}-{s}" / "finished.json").read_text())["seconds"]
            for s in seeds
        ]
        entry["trained_parameters"] = json.loads(
            (RUNS / f"{arm}-{seeds[0]}" / "finished.json").read_text()
        )["trained_parameters"]
        summary["arms"][arm] = entry
    if "best" in runs:
        steps = list(summary["arms"]["best"]["loss"])
        summary["cider_above"] = {step: cider_above(runs, step) for step in steps}
        summary["half_runs"] = drift(runs)
        summary["no_model"] = without_model()
    return summary


def captioned_at(arm: str, seed: int, step: int) -> Path | None:
    """Where a run's captions at a step lie: its own, else those of its first half."""
    last = max(losses(arm, seed))
    name = "captions" if step == last else f"captions-{step}"
    folders = (runs / f"{arm}-{seed}" / name for runs in (RUNS, HALVES))
    return next((folder for folder in folders if (folder / "results.json").is_file()), None)


def captions_of(arm: str, seeds: list[int], step: int) -> dict[str, Any]:
    """CIDEr and BLEU-4 of the seeds that were captioned, with 95 % intervals over photos.

    CIDEr's interval is of the mean over seeds; BLEU-4, no mean over photos, has the mean bounds.
    """
    from tinyalign.evaluation.metrics.intervals import interval

    folders = [folder for seed in seeds if (folder := captioned_at(arm, seed, step))]
    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    if not found:
        return {}
    bleu = [one["metrics"]["bleu4"] for one in found]
    return {
        "seeds": len(found),
        "n": found[0]["n"],
        "cider": interval(cider(arm, seeds, step)).as_dict(),
        "bleu4": {k: sum(b[k] for b in bleu) / len(bleu) for k in ("value", "low", "high")},
    }


def without_model() -> dict[str, Any]:
    """Captions that are the text of the most similar memory, of the best form's first seed.

    Also how often the model's own captions are one of its memories, word for word.
    """
    from tinyalign.evaluation.controls.look_up import look_up
    from tinyalign.evaluation.metrics.caption_tokens import caption_tokens
    from tinyalign.evaluation.results import read_predictions
    from tinyalign.evaluation.tasks import score
    from tinyalign.memory.bank.bank import MemoryBank

    folder = RUNS / f"best-{finished()['best'][0]}"
    path = folder / "captions" / "predictions.jsonl"
    if not path.is_file():
        return {}
    bank = MemoryBank.open(json.loads((folder / "memory.json").read_text())["bank"])
    written = read_predictions(path)
    told = score("caption", look_up(written, "nearest")).metrics
    said = {name: caption_tokens(text) for name, text in zip(bank.ids, bank.texts)}
    copied = [
        caption_tokens(one.prediction) in [said[name] for name in one.memory_ids] for one in written
    ]
    return {
        "cider": told["cider"].as_dict(),
        "bleu4": told["bleu4"].as_dict(),
        "copied": sum(copied) / len(copied),
    }


def cider(arm: str, seeds: list[int], step: int) -> Any:
    """CIDEr-D of each photo, as statistics (seeds, photos, 2), of the seeds that were captioned."""
    import numpy as np

    from tinyalign.evaluation.metrics.intervals import per_item

    runs = []
    for seed in seeds:
        if folder := captioned_at(arm, seed, step):
            rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
            runs.append({row["id"]: row["scores"]["cider"] for row in rows})
    ids = sorted(runs[0])
    return per_item(np.array([[run[name] for name in ids] for run in runs]))


def cider_above(runs: dict[str, Any], step: int) -> dict[str, list[float]]:
    """How far CIDEr of the best form lies above each other arm's, paired over photos."""
    from tinyalign.evaluation.metrics.intervals import paired_difference

    found = {}
    for arm, by_seed in runs.items():
        both = sorted(set(by_seed) & set(runs["best"]))
        both = [s for s in both if captioned_at(arm, s, step) and captioned_at("best", s, step)]
        if arm != "best" and both:
            gap = paired_difference(cider("best", both, step), cider(arm, both, step))
            found[arm] = [gap.value, gap.low, gap.high]
    return found


def drift(runs: dict[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Dev loss of the half runs over that of the whole ones, less 1: arm -> step -> by seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for arm, by_seed in runs.items():
        for seed, whole in by_seed.items():
            for path in sorted((HALVES / f"{arm}-{seed}").glob("eval-*.jsonl")):
                step = int(path.stem.split("-")[1])
                again, before = mean_loss(read_losses(path)), mean_loss(whole[step])
                found.setdefault(arm, {}).setdefault(step, []).append(again / before - 1)
    return found


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(summary: dict[str, Any]) -> str:
    """Losses and captions of every arm, then how far the best form lies below each other arm."""
    arms = summary["arms"]
    steps = list(next(iter(arms.values()))["loss"])
    ciders = [f"CIDEr @{step}" for step in steps]
    head = ["arm", "seeds", "trained", *(f"loss @{step}" for step in steps)]
    head += [", ".join(f"@{step}" for step in steps).replace("@", "CIDEr @", 1), "BLEU-4"]
    rows = [head, ["---"] * len(head)]
    for entry in arms.values():
        trained = f"{entry['trained_parameters'] / 1e6:.2f} M"
        cells = [entry["form"], str(len(entry["seeds"])), trained]
        cells += [f"{entry['loss'][step][0]:.3f}" for step in steps]
        *earlier, last = (entry["captions"][step] for step in steps)
        ciders_so_far = [f"{one['cider']['value']:.3f}" if one else "–" for one in earlier]
        cells += [", ".join([*ciders_so_far, captioned(last, "cider")])]
        rows.append([*cells, captioned(last, "bleu4")])
    if alone := summary.get("no_model"):
        name = "no model: the most similar memory's caption"
        blank = ["–"] * (2 + len(steps))
        rows.append([name, *blank, captioned(alone, "cider"), captioned(alone, "bleu4")])
    text = markdown(rows)
    if "best" not in arms:
        return text
    head = ["the best form against", *(f"loss @{step}" for step in steps), *ciders]
    rows = [head, ["---"] * len(head)]
    for other, gaps in arms["best"]["below"].items():
        gains = [summary["cider_above"][step].get(other) for step in steps]
        cells = [percent(gaps[step]) for step in steps]
        cells += ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain) if gain else "–" for gain in gains]
        rows.append([arms[other]["form"], *cells])
    return text + "\n" + markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def captioned(scores: dict[str, Any], name: str) -> str:
    """A caption metric, mean over seeds, with its interval over photos."""
    if not scores:
        return "–"
    score = scores[name]
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def percent(gap: list[float]) -> str:
    return f"{100 * gap[0]:+.1f} % [{100 * gap[1]:+.1f}, {100 * gap[2]:+.1f}]"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Training loss (mean of the last 30 steps, over seeds) and dev losses as dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    for arm, color in LINES.items():
        entry = summary["arms"].get(arm)
        if entry is None:
            continue
        curves = []
        for seed in entry["seeds"]:
            lines = (RUNS / f"{arm}-{seed}" / "metrics.jsonl").read_text().splitlines()
            curves.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
        curve = np.mean(curves, axis=0)
        smooth = np.convolve(curve, np.ones(30) / 30, mode="valid")
        steps = np.arange(len(smooth)) + 30
        axes.plot(steps, smooth, color=color, lw=1.4, alpha=0.55)
        at = [int(step) for step in entry["loss"]]
        axes.plot(
            at, [value[0] for value in entry["loss"].values()], "o-", color=color, lw=2.2,
            label=DRAWN.get(arm, entry["form"]),
        )  # fmt: skip
    axes.set_xlabel("step (16 photos each)")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(top=min(3.6, axes.get_ylim()[1]))
    axes.set_title("Flickr8k, frozen SmolLM2-135M: dev loss (dots) and training loss (thin)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def report() -> None:
    """Write flickr8k.json, flickr8k.md and flickr8k.png."""
    summary = summarise()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "flickr8k.json").write_text(json.dumps(summary, indent=2) + "\n")
    (RESULTS / "flickr8k.md").write_text(table(summary))
    draw(summary, RESULTS / "flickr8k.png")
    print(table(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "one", "report"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--captions", type=int, default=1000, help="dev photos to caption")
    parser.add_argument("--half", action="store_true", help="the first half of the schedule only")
    parser.add_argument("--set", action="append", default=[], help="further NAME=VALUE settings")
    args = parser.parse_args()
    if args.what == "run":
        run_all(args.arms, args.seeds, args.workers, args.captions, args.set, args.half)
    elif args.what == "one":
        settings = dict(setting.split("=", 1) for setting in args.set)
        run_one(args.arms[0], args.seeds[0], args.captions, settings, args.half)
    else:
        report()


if __name__ == "__main__":
    main()
