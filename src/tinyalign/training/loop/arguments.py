"""A stage's settings in the Trainer's terms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainingArguments

from tinyalign.data.collator import ROW_MULTIPLE
from tinyalign.data.packing import Layout
from tinyalign.training.batches.dataset import TrainingDataset
from tinyalign.training.batches.micro_batches import SeededOrder, Split, accumulation_for
from tinyalign.training.machine.launch import processes, zero_on_cpu
from tinyalign.training.machine.precision import adamw, mixed_precision
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs


def planned_steps(args: StageArgs, n_samples: int) -> int:
    """Optimiser steps of a stage over `n_samples` samples, however many processes share them."""
    if args.max_steps is not None:
        return args.max_steps
    return math.ceil(args.epochs * max(1, math.ceil(n_samples / args.batch_size)))


def plan_split(args: StageArgs, layout: Layout, dataset: TrainingDataset, seed: int) -> Split:
    """How the steps of a stage are shared out, from the lengths of its samples and its budget."""
    count = processes()
    _, accumulation = args.accumulation(count)
    split = Split(layout, args.batch_size, accumulation, count)
    if args.micro_tokens is None:
        return split
    # Rows are filled up to a multiple, so a budget of such a multiple is one that they keep.
    multiple = ROW_MULTIPLE if layout == "packed" else 1
    split = replace(split, budget=max(1, args.micro_tokens // multiple * multiple))
    steps = math.ceil(len(dataset) / args.batch_size)
    epochs = args.epochs if args.max_steps is None else args.max_steps / steps
    order = SeededOrder(len(dataset), seed)
    needed = accumulation_for(order, dataset.lengths.tolist(), split, math.ceil(epochs))
    return replace(split, accumulation=needed)


def training_arguments(
    recipe: Recipe,
    args: StageArgs,
    folder: Path,
    device: torch.device,
    split: Split | None = None,
) -> TrainingArguments:
    """The stage in the Trainer's terms. split: where it decides over micro-batches."""
    micro, accumulation = args.accumulation(processes())
    if split is not None:
        micro, accumulation = math.ceil(split.batch_size / split.groups), split.accumulation
    trains_large = args.language != "frozen" or args.vision == "full"
    zero = zero_on_cpu(device)
    schedule = "constant_with_warmup" if args.schedule == "constant" else args.schedule
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=args.eval_batch_size or micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps or -1,
        learning_rate=args.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=args.warmup,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        optim=adamw(device),
        **mixed_precision(recipe.model.dtype, trains_large),
        use_cpu=device.type == "cpu" and not zero,
        ddp_backend="gloo" if zero else None,
        save_strategy="no" if args.checkpoint_steps is None else "steps",
        save_steps=args.checkpoint_steps or 1,
        save_total_limit=args.keep_checkpoints,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=recipe.data.workers,
        dataloader_pin_memory=device.type == "cuda",
        ddp_broadcast_buffers=args.vision == "full",  # nothing else has buffers that change
        remove_unused_columns=False,
        disable_tqdm=True,
    )
