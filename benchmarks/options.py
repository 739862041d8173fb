"""What each training option alone gives: time and peak memory of a step, one option changed.

    python benchmarks/options.py [--steps 5] [--threads 2] [--only bf16-sdpa ...]

SmolLM2-135M behind a random image connector, on made batches: `captions` (16 samples of 105 to
120 tokens, 81 of them an image's, 20 supervised) and `answers` (4 samples of 512 tokens, 400 of
them supervised). Every row runs in a process of its own: one step to warm up, then `--steps` timed
ones. Time is the median; beside it the processor's time over all threads, which a busy machine
disturbs less. Memory is the process' high-water mark. Ratios are to the first row of a batch.
Writes results/options.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
IMAGE_TOKENS = 81


@dataclass(frozen=True)
class Option:
    """A row: what is computed, and how."""

    says: str
    batch: str = "captions"
    language: str = "full"
    precision: str = "bfloat16"
    attention: str = "eager"
    adamw: str = "fused"
    checkpointing: bool = False
    compiled: bool = False
    cross_entropy: str = "full"
    all_logits: bool = False


BASE = Option("LLM trained, bfloat16, eager attention, fused AdamW")
FROZEN = Option("LLM frozen, bfloat16, eager attention", language="frozen")
LONG = replace(BASE, batch="answers")
OPTIONS = {
    "base": BASE,
    "float32": replace(BASE, says="float32", precision="float32"),
    "sdpa": replace(BASE, says="SDPA", attention="sdpa"),
    "adamw-foreach": replace(BASE, says="AdamW foreach", adamw="foreach"),
    "adamw-loop": replace(BASE, says="AdamW, a loop", adamw="loop"),
    "checkpointing": replace(BASE, says="gradient checkpointing", checkpointing=True),
    "compiled": replace(BASE, says="compiled layers", compiled=True),
    "all-logits": replace(BASE, says="logits everywhere", all_logits=True),
    "chunked": replace(BASE, says="chunked cross-entropy", cross_entropy="chunked"),
    "frozen": FROZEN,
    "frozen-sdpa": replace(FROZEN, says="SDPA", attention="sdpa"),
    "frozen-compiled": replace(FROZEN, says="compiled layers", compiled=True),
    "frozen-chunked": replace(FROZEN, says="chunked cross-entropy", cross_entropy="chunked"),
    "answers": LONG,
    "answers-chunked": replace(LONG, says="chunked cross-entropy", cross_entropy="chunked"),
    "answers-checkpointing": replace(LONG, says="gradient checkpointing", checkpointing=True),
    "answers-both": replace(
        LONG, says="both of these", checkpointing=True, cross_entropy="chunked"
    ),
}


def made_batch(model: Any, kind: str) -> dict[str, Any]:
    """A padded batch with random words and image features."""
    import torch

    from tinyalign.data.collator import Collator
    from tinyalign.model.backbones.feature_width import feature_width

    torch.manual_seed(0)
    lengths = range(105, 125) if kind == "captions" else [512] * 4
    supervised = 20 if kind == "captions" else 400
    image = [model.config.image_token_id] * IMAGE_TOKENS
    items = []
    for length in list(lengths)[:16]:
        words = torch.randint(100, 40_000, (length - IMAGE_TOKENS,)).tolist()
        labels = [-100] * (length - supervised) + words[-supervised:]
        items.append({"input_ids": image + words, "labels": labels})
    batch = Collator(0)(items)
    del batch["n_supervised"]
    width = feature_width(model.config.vision_config)
    batch["vision_features"] = torch.randn(len(items), IMAGE_TOKENS, width)
    return batch


def measure(option: Option, steps: int, threads: int) -> dict[str, float]:
    """Median seconds of a step, processor seconds, and peak memory in GB."""
    import torch

    from tinyalign.model.build import build_model
    from tinyalign.training.machine.compiling import compile_layers
    from tinyalign.training.machine.process_ram import peak_resident
    from tinyalign.training.recipe.stage import StageArgs
    from tinyalign.training.weights.freeze import freeze

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = getattr(torch, option.precision)
    model, _ = build_model(
        "efficientnet-lite2", "smollm2-135m", dtype=dtype, attn_implementation=option.attention
    )
    freeze(model, StageArgs(language=option.language))
    if option.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if option.compiled:
        compile_layers(model, "on", steps)
    batch = made_batch(model, option.batch)
    kernel = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, **kernel[option.adamw])
    model.train()
    autocast = option.language == "full" and option.precision == "bfloat16"
    rows = []
    for _ in range(1 + steps):
        began, processor = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(
                **batch, supervised_only=not option.all_logits, use_cache=False,
                cross_entropy=option.cross_entropy,
            ).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        before = time.process_time()
        optimizer.step()
        optimizer_seconds = time.process_time() - before
        optimizer.zero_grad()
        ended = time.process_time() - processor
        rows.append((time.perf_counter() - began, ended, optimizer_seconds))
    medians = [statistics.median(column) for column in zip(*rows[1:])]
    names = ("seconds", "processor_seconds", "optimizer_seconds")
    peak = peak_resident() / 1e9
    return {**dict(zip(names, medians)), "peak_gb": peak, "loss": loss.item()}


def table(results: dict[str, dict[str, float]], machine: str) -> str:
    """The results as Markdown."""
    lines = [
        "# What each training option alone gives",
        "",
        f"{machine}. `python benchmarks/options.py` measures again.",
        "",
        "| batch | option | s a step | processor s | of it AdamW | time x | peak GB | memory x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first: dict[tuple[str, str], dict[str, float]] = {}
    for name, row in results.items():
        option = OPTIONS[name]
        base = first.setdefault((option.batch, option.language), row)
        lines.append(
            f"| {option.batch} | {option.says} | {row['seconds']:.2f} "
            f"| {row['processor_seconds']:.2f} | {row['optimizer_seconds']:.2f} "
            f"| {row['processor_seconds'] / base['processor_seconds']:.2f} "
            f"| {row['peak_gb']:.2f} | {row['peak_gb'] / base['peak_gb']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(OPTIONS))
    parser.add_argument("--job", help="measure one row and print it")
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(OPTIONS[args.job], args.steps, args.threads)))
        return
    import torch
    import transformers

    results: dict[str, dict[str, float]] = {}
    for name in args.only:
        command = [sys.executable, __file__, "--job", name]
        command += ["--steps", str(args.steps), "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results[name], flush=True)
    machine = (
        f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, medians of {args.steps} steps, no GPU"
    )
    RESULTS.mkdir(exist_ok=True)
    note = json.dumps({"machine": machine, "rows": results}, indent=2) + "\n"
    (RESULTS / "options.json").write_text(note)
    (RESULTS / "options.md").write_text(table(results, machine))
    print(table(results, machine))


if __name__ == "__main__":
    main()
