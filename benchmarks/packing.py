"""The LLM's layers over packed and over padded rows, side by side: forward and backward in seconds.

    python benchmarks/packing.py [--steps 12] [--threads 1 2]

Layers of SmolLM2-135M's shape in bfloat16, frozen as in stage 1: gradients go to the inputs alone.
A step has 16 samples as long as Flickr8k's captions behind 25 image tokens (k = 0), and behind 32
memory tokens more (k = 5). Each step runs padded and packed, in turn, layers as they are and
compiled; a process for each number of threads. Writes results/packing.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
LAYOUTS = ("padded", "packed")
SAMPLES = 16


def layers(layout: str, compiled: bool) -> Any:
    """A LlamaModel of SmolLM2-135M's shape, frozen, with the attention of the layout."""
    import torch
    from transformers import LlamaConfig, LlamaModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=8, rms_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaModel(config).to(torch.bfloat16).requires_grad_(False).train()
    if layout == "packed":
        model.config._attn_implementation = "segments_eager"
    for layer in model.modules():
        if compiled and isinstance(layer, GradientCheckpointingLayer):
            layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]
    return model


def lengths_of_steps(k: int, steps: int) -> list[list[int]]:
    """Tokens of each step's samples: captions of 10 to 33 tokens, most of them short."""
    import torch

    draw = torch.Generator().manual_seed(0)
    before = 25 + (32 if k else 0)
    found = []
    for _ in range(steps):
        words = 10 + torch.randint(0, 12, (SAMPLES,), generator=draw)
        words += (torch.rand(SAMPLES, generator=draw) ** 3 * 12).long()
        found.append((words + before).tolist())
    return found


def step(model: Any, layout: str, lengths: list[int]) -> float:
    """Seconds of one forward and backward."""
    import torch

    from tinyalign.data.collator import ROW_MULTIPLE, Collator, PackedCollator

    collator = PackedCollator(0, ROW_MULTIPLE) if layout == "packed" else Collator(0)
    batch = collator([{"input_ids": [1] * length} for length in lengths])
    inputs = torch.randn(*batch["input_ids"].shape, 576, dtype=torch.bfloat16, requires_grad=True)
    if layout == "packed":
        kept = {
            "attention_mask": batch["segments"][:, None, None, :],
            "position_ids": batch["position_ids"],
        }
    else:
        kept = {"attention_mask": batch["attention_mask"]}
    started = time.perf_counter()
    out = model(inputs_embeds=inputs, use_cache=False, **kept).last_hidden_state
    out.float().sum().backward()
    return time.perf_counter() - started


def measure(steps: int) -> list[dict[str, Any]]:
    """A row for each k, layers as they are and compiled."""
    import torch

    from tinyalign.model.packing.segments import register

    register()
    rows = []
    for compiled in (False, True):
        models = {layout: layers(layout, compiled) for layout in LAYOUTS}
        for k in (0, 5):
            seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
            plan = lengths_of_steps(k, steps + 2)
            for lengths in plan:
                for layout, model in models.items():
                    seconds[layout].append(step(model, layout, lengths))
            timed = {layout: values[2:] for layout, values in seconds.items()}
            rows.append(
                {
                    "threads": torch.get_num_threads(),
                    "compiled": compiled,
                    "k": k,
                    "padding": 1 - sum(map(sum, plan)) / sum(SAMPLES * max(x) for x in plan),
                    **{layout: median(values) for layout, values in timed.items()},
                    "ratio": median(b / a for a, b in zip(*(timed[x] for x in LAYOUTS))),
                }
            )
    return rows


def table(report: dict[str, Any]) -> str:
    lines = [
        "| threads | layers | k | padding | padded, s | packed, s | packed / padded |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        kind = "compiled" if row["compiled"] else "as they are"
        lines.append(
            f"| {row['threads']} | {kind} | {row['k']} | {row['padding']:.0%} | "
            f"{row['padded']:.3f} | {row['packed']:.3f} | {row['ratio']:.2f} |"
        )
    cpu = report["machine"]
    lines += [
        "",
        f"{cpu['cpu']}, {cpu['cores']} cores; torch {cpu['torch']}, transformers "
        f"{cpu['transformers']}. Medians over {report['steps']} steps.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.steps)))
        return
    from flickr8k import machine

    rows: list[dict[str, Any]] = []
    for threads in dict.fromkeys(args.threads):
        command = [sys.executable, __file__, "--one", "--steps", str(args.steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    report = {"machine": machine(), "steps": args.steps, "rows": rows}
    (RESULTS / "packing.json").write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / "packing.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
