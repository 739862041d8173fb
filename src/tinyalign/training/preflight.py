"""What is wrong with a run's paths, found before a model is fetched or built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyalign.errors import BankError, ConfigError, DataError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.model.saved import find_model
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.memory import MemoryArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import check_source
from tinyalign.training.run_folder import CACHE_NOTE, RunFolder
from tinyalign.vocabulary import Stage


def check_paths(recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]) -> None:
    """Look for all that `stages`, those that are still to be run, will read.

    Raises DataError for data, BankError for a memory bank or a Perceiver, and ConfigError for a
    model to start from that is not there; each names the recipe's field. Reads no sample.
    """
    for name, source in _sources(recipe, folder, stages):
        try:
            check_source(source)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    if stages and recipe.memory.reads_bank:
        _check_memory(recipe.memory)
    if "finetune" in stages and (recipe.start_from is not None or "pretrain" not in stages):
        stage_two_start(recipe, folder)


def stage_two_start(recipe: Recipe, folder: RunFolder) -> Path:
    """The model that stage 2 starts from. ConfigError where there is none."""
    start = recipe.start_from or folder.stage_model("pretrain")
    try:
        return find_model(start)
    except ConfigError as error:
        if recipe.start_from is not None:
            raise ConfigError(f"start_from: {error}") from error
        raise ConfigError(
            f"{start}: no model of stage 1 to start stage 2 from; run --stage pretrain first, "
            "or name a run in start_from"
        ) from None


def _sources(
    recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]
) -> Iterator[tuple[str, DataSource]]:
    """The data sets that will be opened, by their names in the recipe, each once."""
    data, memory = recipe.data, recipe.memory
    read: list[Stage] = [*stages]
    if stages and data.cache == "auto" and not (folder.path / CACHE_NOTE).is_file():
        read = ["pretrain", "finetune"]  # the choice of a cache counts the images of both
    named = {f"data.{stage}": getattr(data, stage) for stage in read}
    named |= {f"data.{stage}_eval": getattr(data, f"{stage}_eval") for stage in read}
    if data.finetune is None:
        named.pop("data.finetune_eval", None)
    if stages and memory.reads_bank and memory.bank.path is None:
        name = "data.pretrain" if memory.bank.data is None else "memory.bank.data"
        named[name] = memory.bank.data or data.pretrain
    yield from ((name, source) for name, source in named.items() if source is not None)


def _check_memory(memory: MemoryArgs) -> None:
    """Look for a bank or a Perceiver that the recipe names."""
    if memory.bank.path is not None:
        try:
            MemoryBank.open(memory.bank.path)
        except BankError as error:
            raise BankError(f"memory.bank.path: {error}") from error
    elif memory.perceiver.path is not None and memory.control != "untrained_perceiver":
        _check_perceiver(Path(memory.perceiver.path))


def _check_perceiver(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BankError(
            f"memory.perceiver.path: {folder}: expected the folder of a Perceiver, found no "
            "config.json there; `tinyalign perceiver train` makes one"
        )
