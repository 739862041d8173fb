"""Questions about real rooms and about drawn shapes: with memory and without, every test question.

    python benchmarks/vqa.py daquar [--arms baseline tinyalign] [--seeds 0]
    python benchmarks/vqa.py easy-vqa --runs quickstart
    python benchmarks/vqa.py report

DAQUAR: the 794 training photos are split by image, four fifths to learn from and a fifth to judge
on; the split follows from the photos' names alone. SmolLM2-135M and EfficientNet-Lite2 are trained
as for easy-VQA (connectors first, then connectors and LLM), once without memory and once with it,
at equal steps; nothing was chosen by looking at the judged fifth. Photos are read from
../shared/data/daquar. WUPS needs WordNet's files (see docs/evaluation.md).

easy-VQA: the two models of `make quickstart` (the folder --runs) answer the official test split,
all of it. Everything is judged by `tinyalign evaluate --benchmark`, on DAQUAR with memory on, off
and shuffled, and without the image; `report` writes benchmarks/results/vqa.{json,md}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "vqa"
DAQUAR = "../shared/data/daquar/train.parquet"
RECIPE = "smollm2-135m-efficientnet-easy-vqa"
ARMS = {"baseline": "baseline: no memory", "tinyalign": "TinyAlign"}
LOOK_UPS = ("nearest", "consensus")
ROWS = {
    "on": "with its memory",
    "off": "memory switched off",
    "shuffled": "other entries' values",
    "text-only": "without image and memory",
    "nearest": "no model: the most similar memory's answer",
    "consensus": "no model: the answer that most neighbours give",
}


def split_by_photo() -> tuple[Path, Path]:
    """train.parquet and judged.parquet of DAQUAR's training photos; a photo is in one of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(DAQUAR)
    digests = [hashlib.sha256(name.encode()).digest()[0] for name in table["id"].to_pylist()]
    judged = pa.array([digest % 5 == 0 for digest in digests])
    out = RUNS / "daquar" / "data"
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "train.parquet", out / "judged.parquet"
    for path, chosen in zip(paths, (pa.compute.invert(judged), judged)):
        pq.write_table(table.filter(chosen), path)
    return paths


def train_daquar(arm: str, seed: int, steps: tuple[int, int], alpha: float) -> tuple[Path, Path]:
    """(run folder, file of the judged questions)."""
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train

    learned, judged = split_by_photo()
    folder = RUNS / "daquar" / f"{arm}-{seed}"
    settings = {
        "output": str(folder),
        "seed": seed,
        "model.compile": "auto",
        "data.pretrain": {"path": str(learned)},
        "data.finetune": {"path": str(learned)},
        "data.pretrain_eval": None,
        "data.finetune_eval": {"path": str(judged)},
        "memory.bank.entries": None,
        "memory.key.alpha": alpha,
        "memory.perceiver": {"min_steps": 400},
        "pretrain.max_steps": steps[0],
        "finetune.max_steps": steps[1],
    }
    recipe = load_recipe(RECIPE, settings)
    train(recipe.with_k(0) if arm == "baseline" else recipe)
    return folder, judged


def judge(benchmark: str, run: Path, arm: str, out: Path, *more: str) -> None:
    """All questions, by the verb that users have; DAQUAR's with memory in four rows."""
    rows = ["--rows", "all"] if benchmark == "daquar" else []
    more = (*more, *(() if benchmark == "daquar" else ("--no-loss",)))
    memory = ["--bank", str(run), *rows] if arm == "tinyalign" else []
    command = [
        sys.executable, "-m", "tinyalign", "evaluate", "--model", str(run), *memory, "--benchmark",
        benchmark, "--protocol", "plain", "--batch-size", "64", "--out", str(out), *more,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def report() -> None:
    """One row a model and condition, and the paired difference."""
    from tinyalign.evaluation.comparison import compare
    from tinyalign.evaluation.controls.look_up import look_up
    from tinyalign.evaluation.results import read_predictions, read_results
    from tinyalign.evaluation.tasks import score

    summary: dict[str, Any] = {}
    for benchmark in ("daquar", "easy-vqa"):
        folders = sorted((RUNS / benchmark / "judged").glob("*-[0-9]*"))
        found: dict[str, Any] = {}
        predictions: dict[str, Any] = {}
        for folder in folders:
            for path in sorted(folder.rglob("results.json")):
                row = path.parent.name if path.parent != folder else "alone"
                name = f"{folder.name}/{row}"
                results = read_results(path)
                found[name] = {"n": results.n} | {
                    metric: [value.value, value.low, value.high]
                    for metric, value in results.metrics.items()
                }
                predictions[name] = read_predictions(path.parent / "predictions.jsonl")
                if row == "alone" and results.bank is not None:  # `--rows all` has them already
                    for kind in LOOK_UPS:
                        told = score("vqa", look_up(predictions[name], kind))
                        share = told.metrics["accuracy"]
                        predictions[f"{folder.name}/{kind}"] = told.predictions
                        found[f"{folder.name}/{kind}"] = {
                            "n": results.n, "accuracy": [share.value, share.low, share.high]
                        }  # fmt: skip
        gaps = {}
        for name in found:
            arm, row = name.split("/")
            base = f"baseline-{arm.rsplit('-', 1)[1]}/alone"
            if arm.startswith("tinyalign") and base in found:
                gap = compare([predictions[name]], [predictions[base]], "accuracy")
                gaps[name] = [gap.value, gap.low, gap.high]
        summary[benchmark] = {"models": found, "accuracy_above_baseline": gaps}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "vqa.json").write_text(json.dumps(summary, indent=2) + "\n")
    (RESULTS / "vqa.md").write_text(table(summary))
    print(table(summary))


def table(summary: dict[str, Any]) -> str:
    """The summary as markdown."""
    text = ""
    for benchmark, part in summary.items():
        metrics = ["accuracy", *(("wups_0.9", "wups_0.0") if benchmark == "daquar" else ())]
        n = next(iter(part["models"].values()))["n"] if part["models"] else 0
        text += f"{benchmark}, {n} questions\n\n"
        head = ["model", *metrics, "above the baseline"]
        rows = [head, ["---", *["---:"] * (len(head) - 1)]]
        for name, values in part["models"].items():
            arm, row = name.split("/")
            label = ARMS[arm.rsplit("-", 1)[0]] + (f", {ROWS[row]}" if row in ROWS else "")
            label = ROWS[row] if row in LOOK_UPS else label
            gap = part["accuracy_above_baseline"].get(name)
            cells = [share(values[m]) if m in values else "–" for m in metrics]
            rows.append([label, *cells, points(gap) if gap else ""])
        text += "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n\n"
    return text


def share(value: list[float]) -> str:
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * number for number in value))


def points(value: list[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * number for number in value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["daquar", "easy-vqa", "report"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs=2, type=int, default=[150, 340], help="of both stages")
    parser.add_argument("--alpha", type=float, default=0.2, help="the image's share of a key")
    parser.add_argument("--runs", type=Path, default=Path("quickstart"), help="of easy-VQA")
    args = parser.parse_args()

    from tinyalign.log import setup_logging

    setup_logging()
    for seed in args.seeds:
        for arm in args.arms:
            out = RUNS / args.what / "judged" / f"{arm}-{seed}"
            if args.what == "daquar":
                run, judged = train_daquar(arm, seed, tuple(args.steps), args.alpha)
                judge("daquar", run, arm, out, "--data", str(judged))
            elif args.what == "easy-vqa":
                judge("easy-vqa", args.runs / arm, arm, out)
    report()


if __name__ == "__main__":
    main()
