"""What is made before anything is timed: weights on disk, caches, banks, tables, and FLOPs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from contenders.clock import StepClock
from contenders.ours import watch
from contenders.pairs import RECIPE, STAGES, Task

CLOCKED = 1_000_000  # never reached: the stage runs to its end


def prepare(task: Task, ks: tuple[int, ...]) -> dict[str, Any]:
    """One step of every stage and k, from nothing to warm caches.

    Returns for "STAGE k=K": seconds from the start of `train()` to the first step, and that step's
    FLOPs and tokens, forward and backward.
    """
    write_language(Path(task.language))
    if task.pair.vision.startswith("siglip"):
        write_siglip(task.work / task.pair.vision)
    found: dict[str, Any] = {}
    for stage in STAGES:
        for k in ks:
            found[f"{stage} k={k}"] = one_step(replace(task, stage=stage, k=k))
    return found


def one_step(task: Task) -> dict[str, Any]:
    """Run one step of a stage, uncompiled, and count what it computes."""
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train

    stage, settings = task.stage, task.recipe_settings()
    output = task.stage_1_folder if stage == "pretrain" else task.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    settings |= {"output": str(output), f"{stage}.max_steps": 1, "model.compile": "off"}
    # What is counted is one step with cached features: a rehearsal would count twice, and for a
    # single step no cache would be worth making.
    settings |= {f"{stage}.rehearse": False, "data.cache": "features"}
    clock = StepClock(warmup=CLOCKED, steps=0)
    with counting_flops() as flops, watch(clock):
        train(load_recipe(RECIPE, settings), stage, resume=False)
    step = clock.steps[0]
    return {
        "first_step_after_s": step.asked - clock.started,
        "flops": flops[0],
        "tokens": step.tokens,
        "computed": step.computed,
        "samples": step.samples,
    }


@contextmanager
def counting_flops() -> Iterator[list[int]]:
    """Counts the floating-point operations of training steps (two a multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    from tinyalign.training.loop.trainer import TinyAlignTrainer

    plain, total = TinyAlignTrainer.training_step, [0]

    def counted(trainer: Any, *args: Any, **named: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            loss = plain(trainer, *args, **named)
        total[0] += counter.get_total_flops()
        return loss

    TinyAlignTrainer.training_step = counted  # type: ignore[method-assign]
    try:
        yield total
    finally:
        TinyAlignTrainer.training_step = plain  # type: ignore[method-assign]


def write_language(folder: Path) -> None:
    """SmolLM2 unpacked once, in bfloat16: all contenders read the same file."""
    import torch

    from tinyalign.model.backbones.language import load_language

    if not (folder / "tokenizer.json").is_file():
        model, tokenizer = load_language("smollm2-135m", torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def write_siglip(folder: Path) -> None:
    """A tower of SigLIP-B/16-224's sizes with random weights, without its pooling head."""
    import torch
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    if (folder / "config.json").is_file():
        return
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        image_size=224, patch_size=16, vision_use_head=False,
    )  # fmt: skip
    SiglipVisionModel(config).to(torch.bfloat16).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
