"""Settings that do nothing, because of another one: said when a recipe is read.

A recipe that is run with `memory.k 0`, as its own baseline, is not told of its memory: leaving it
in is how a baseline is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any

from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs


def without_effect(recipe: Recipe) -> list[str]:
    """A sentence for each setting that was changed and does nothing."""
    return [*_of_memory(recipe), *_of_stages(recipe), *_of_data(recipe)]


def _of_memory(recipe: Recipe) -> Iterator[str]:
    memory = recipe.memory
    if not memory.k:
        return
    fusion, key = memory.fusion, memory.key
    if fusion.form == "width":
        yield from _idle(
            "memory.fusion", fusion, ["latents_used"], "with form width, which uses all"
        )
    if not fusion.linear_skip:
        yield from _idle("memory.fusion", fusion, ["closed_form"], "without linear_skip")
    if fusion.form == "sequence" and not (fusion.args or {}).get("prompt_tokens"):
        for name in ("prompt_last", "prompt_hidden_size"):
            if (fusion.args or {}).get(name):
                yield _says(f"memory.fusion.args {name}", "without prompt_tokens")
    if key.kind == "aligned":
        yield from _idle("memory.key", key, ["alpha"], "with kind aligned")
    if memory.order == "similarity":
        yield from _idle("memory", memory, ["temperature"], "with order similarity")
    yield from _of_bank(recipe)


def _of_bank(recipe: Recipe) -> Iterator[str]:
    memory = recipe.memory
    own = [f.name for f in fields(memory.bank) if f.name != "path"]
    training = [f.name for f in fields(memory.perceiver) if f.name != "path"]
    made = (("memory.bank", memory.bank, own), ("memory.key", memory.key, ["kind", "alpha"]))
    if memory.control == "soft_prompt":
        because = "with control soft_prompt, which reads no bank"
        yield from _idle("memory.bank", memory.bank, ["path", *own], because)
    elif memory.bank.path is not None:
        because = "with memory.bank.path: that bank has its own"
        for name, group, names in made:
            yield from _idle(name, group, names, because)
        yield from _idle("memory.perceiver", memory.perceiver, ["path", *training], because)
    elif memory.perceiver.path is not None:
        because = "with memory.perceiver.path: that Perceiver is trained already"
        yield from _idle("memory.perceiver", memory.perceiver, training, because)
        yield from _idle("memory.key", memory.key, ["kind", "alpha"], because)


def _of_stages(recipe: Recipe) -> Iterator[str]:
    for name in ("pretrain", "finetune"):
        stage: StageArgs = getattr(recipe, name)
        if name == "finetune" and recipe.data.finetune is None:
            if stage != StageArgs.finetuning():
                yield _says(name, "without data.finetune, the conversations of stage 2")
            continue
        if not stage.adapts:
            yield from _idle(name, stage, ["lora"], "unless language is lora or qlora")
        if stage.early_stopping is None:
            yield from _idle(name, stage, ["early_stopping_min_delta"], "without early_stopping")
        if stage.micro_tokens is not None:
            yield from _idle(name, stage, ["micro_batch_size"], "with micro_tokens")
        if stage.vision == "frozen":
            yield from _idle(name, stage, ["vision_learning_rate"], "while vision is frozen")
        if getattr(recipe.data, f"{name}_eval") is None:
            yield from _idle(name, stage, ["eval_batch_size"], f"without data.{name}_eval")


def _of_data(recipe: Recipe) -> Iterator[str]:
    for name in ("pretrain", "finetune"):
        source = getattr(recipe.data, name)
        if source is not None and not source.streaming:
            where = f"data.{name}"
            yield from _idle(where, source, ["shuffle_buffer"], "without streaming")
    if recipe.data.cache in ("pixels", "none"):
        because = f"with data.cache {recipe.data.cache}"
        yield from _idle("data", recipe.data, ["cache_dtype"], because)


def _idle(where: str, group: Any, names: Sequence[str], because: str) -> Iterator[str]:
    """Those of the fields that are not at their defaults."""
    for each in fields(group):
        if each.name in names and getattr(group, each.name) != _default(each):
            yield _says(f"{where}.{each.name}", because)


def _default(each: Any) -> Any:
    return each.default_factory() if each.default is MISSING else each.default


def _says(name: str, because: str) -> str:
    return f"{name} does nothing {because}; leave it out"
