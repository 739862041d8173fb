"""Weights that processes share out (FSDP2, ZeRO-3): how they come together again in one model."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.training.machine.launch import is_first


def shard_on_cpu(accelerator: Accelerator) -> bool:
    """Let FSDP2 share out weights between CPUs too, where the launch asks for it.

    torch does so over gloo, but accelerate heeds ACCELERATE_USE_FSDP on GPUs and their like alone.
    Returns whether weights are shared out on CPUs now.
    """
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not wanted or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    state: Any = accelerator.state
    plugin = FullyShardedDataParallelPlugin()
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return True


def name_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Tell FSDP which layers to share out one by one: those that checkpointing takes one by one.

    By itself it asks the model's parts for names, which may name layers that are not there.
    """
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        layers = (part for part in model.modules() if isinstance(part, GradientCheckpointingLayer))
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})


def shares_weights(trainer: Trainer) -> bool:
    """Whether each process holds a part of the weights only."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return bool(trainer.is_fsdp_enabled)


def whole_model(trainer: Trainer, model: Any) -> Any:
    """The trained `model` with all its weights in this process; None on all but the first.

    Every process calls this. Where each holds all weights (one process, DDP, ZeRO-2), that is the
    model itself; FSDP2 and ZeRO-3 gather theirs into a new one, on the CPU.
    """
    if not shares_weights(trainer):
        return model if is_first() else None
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    # ZeRO-3 would have every process take part in whatever model is built from here on.
    unset_hf_deepspeed_config()
    if not is_first():
        return None
    with torch.device("meta"):
        gathered = TinyAlignForConditionalGeneration(model.config)
    gathered.load_state_dict(state, strict=False, assign=True)
    gathered.tie_weights()
    return gathered
