"""The largest micro-batch runs first, changes nothing, and says what to lower where memory ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tinyalign.errors import ConfigError
from tinyalign.training.batches.micro_batches import MicroBatches
from tinyalign.training.loop.rehearsal import is_out_of_memory, untouched
from tinyalign.training.loop.trainer import TinyAlignTrainer
from tinyalign.training.metering.metrics_log import STEP_KEYS
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun

EXACT = {*STEP_KEYS, "eval_loss", "tokens", "padding"} - {"seconds"}


def run(recipe: Recipe, name: str, **settings) -> list[dict]:
    stage = replace(recipe.pretrain, **settings)
    recipe = replace(recipe, pretrain=stage, output=f"{recipe.output}-{name}")
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    StageRun(recipe, folder, "pretrain").run()
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k in EXACT} for x in lines]


@pytest.mark.slow
def test_a_rehearsal_changes_no_bit_of_the_run(recipe: Recipe, monkeypatch) -> None:
    memory = replace(recipe.memory, drop_probability=0.5)  # draws random numbers
    recipe = replace(recipe, memory=memory)
    seen = []
    rehearse = TinyAlignTrainer.rehearse

    def spy(trainer, batch):
        rehearse(trainer, batch)
        seen.append((batch["input_ids"].numel(), trainer.micro_batches()))

    monkeypatch.setattr(TinyAlignTrainer, "rehearse", spy)
    without = run(recipe, "without", rehearse=False)
    assert not seen
    assert run(recipe, "with") == without
    ((tokens, plan),) = seen
    assert isinstance(plan, MicroBatches)
    plan.set_epoch(0)
    assert tokens == max(sum(plan.lengths[p.position] for p in batch) for batch in plan)


def test_gradients_buffers_and_generators_are_put_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    generator, mean = torch.get_rng_state(), model[1].running_mean.clone()
    with untouched(model):
        model(torch.randn(8, 2) + 5).sum().backward()
        assert not torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(model[1].running_mean, mean)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_too_little_memory_says_how_much_was_asked_and_what_to_lower(recipe, monkeypatch) -> None:
    def full(trainer, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    monkeypatch.setattr(TinyAlignTrainer, "rehearse", full)
    with pytest.raises(ConfigError, match=r"\d+ tokens of 4 samples.*lower micro_tokens"):
        run(recipe, "full")


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(MemoryError())
    cpu = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    assert is_out_of_memory(RuntimeError(cpu))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
