"""Made data and a recipe small enough to train in a second."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyalign.training.recipe.data import DataArgs, DataSource
from tinyalign.training.recipe.memory import MemoryArgs, PerceiverArgs
from tinyalign.training.recipe.model import ModelArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal means equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128,) * 3}
SHAPES = ("dog", "ball", "house")


def make_pairs(folder: Path, n: int, *, first: int = 0, questions: bool = False) -> Path:
    """A LLaVA file of n pairs about n different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(first, first + n):
        colour, shape = list(COLOURS)[i % 4], SHAPES[i % 3]
        noise = np.random.default_rng(i).integers(-25, 25, (24, 32, 3))
        pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        asked = f"<image>\nWhat colour is the {shape}?" if questions else "<image>"
        answer = colour if questions else f"A {colour} {shape} number {i} in the park."
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        records.append({"id": f"pair-{i}", "image": f"{i}.png", "conversations": turns})
    path = folder / ("questions.json" if questions else "pairs.json")
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 captions of 24 pictures."""
    return make_pairs(tmp_path_factory.mktemp("pairs"), 24)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 questions about 24 pictures."""
    return make_pairs(tmp_path_factory.mktemp("questions"), 24, questions=True)


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 captions of other pictures."""
    return make_pairs(tmp_path_factory.mktemp("held-out"), 6, first=100)


def as_tars(pairs: Path, folder: Path, shards: int) -> str:
    """The pairs of a LLaVA file as tars; returns a glob of them."""
    records = json.loads(pairs.read_text())
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for record in records[shard::shards]:
                image = (pairs.parent / record["image"]).read_bytes()
                stem = record["id"]
                for name, data in (
                    (f"{stem}.png", image),
                    (f"{stem}.json", json.dumps(record).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / "*.tar")


@pytest.fixture
def shards(tmp_path: Path, pairs: Path) -> str:
    """The 24 pairs in three tars."""
    return as_tars(pairs, tmp_path / "shards", 3)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs of the session, as for users."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def recipe(
    tmp_path: Path,
    pairs: Path,
    held_out: Path,
    cache_folder: Path,
    tiny_llm_dir: Path,
    tiny_vision_dir: Path,
) -> Recipe:
    """Six steps of stage 1 on tiny random models, k = 2."""
    return Recipe(
        model=ModelArgs(
            vision=str(tiny_vision_dir),
            language=str(tiny_llm_dir),
            template="plain",
            dtype="float32",
        ),
        data=DataArgs(
            pretrain=DataSource(str(pairs)),
            pretrain_eval=DataSource(str(held_out)),
            cache_folder=str(cache_folder),
            cache_dtype="float32",
        ),
        memory=MemoryArgs(
            k=2,
            perceiver=PerceiverArgs(
                min_steps=1, max_steps=2, batch_size=8, vocab_size=300, held_out=0.2
            ),
        ),
        pretrain=StageArgs(batch_size=4, eval_fractions=[0.5, 1.0], checkpoint_steps=None),
        seed=1,
        device="cpu",
        output=str(tmp_path / "run"),
    )


@pytest.fixture
def two_stage_recipe(recipe: Recipe, questions: Path) -> Recipe:
    """Both stages, three steps each."""
    return replace(
        recipe,
        data=replace(recipe.data, finetune=DataSource(str(questions))),
        pretrain=StageArgs(batch_size=8, checkpoint_steps=None),
        finetune=StageArgs(
            learning_rate=1e-3, batch_size=8, language="full", checkpoint_steps=None
        ),
    )
