"""The model pairs, the samples and the settings that every contender shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = "smollm2-135m-efficientnet-flickr8k"
PHOTOS = "../shared/data/flickr8k/train.parquet"
PROMPT = "Describe the photo."
SEED = 0
STAGES = ("pretrain", "finetune")
TEMPLATES = {"pretrain": "plain", "finetune": "chatml"}
RATES = {"pretrain": 1e-3, "finetune": 2e-5}


@dataclass(frozen=True)
class Pair:
    """A vision tower beside SmolLM2-135M, and the connector between them."""

    name: str
    title: str
    vision: str
    """A packaged name, or a folder inside the work folder."""
    connector: str
    connector_args: dict[str, Any]
    packed_length: int
    """Tokens of a row that nanoVLM packs: what 12 to 16 samples need (it packs at most 18)."""


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            "siglip",
            "SmolLM2-135M + a tower of SigLIP-B/16-224's shape (random weights), 49 image tokens",
            "siglip-b16-224",
            "pixel_shuffle",
            {"factor": 2},
            1024,
        ),
        Pair(
            "efficientnet",
            "SmolLM2-135M + EfficientNet-Lite2 (ImageNet weights), 25 image tokens",
            "efficientnet-lite2",
            "mlp2x_gelu",
            {},
            512,
        ),
    )
}


@dataclass(frozen=True)
class Task:
    """What every contender is given: a pair, a stage, and how much of it."""

    pair: Pair
    stage: str
    k: int
    work: Path
    """Folder of weights, caches and runs."""
    batch_size: int
    n_samples: int

    @property
    def tower(self) -> str:
        """What `load_vision` takes."""
        folder = self.work / self.pair.vision
        return str(folder) if folder.is_dir() else self.pair.vision

    @property
    def language(self) -> str:
        """The unpacked LLM's folder."""
        return str(self.work / "smollm2-135m")

    @property
    def stage_1_folder(self) -> Path:
        """A run of stage 1, one step long, for stage 2 to start from."""
        return self.work / f"start-{self.pair.name}-k{self.k}"

    def source(self, stage: str) -> dict[str, Any]:
        """The photos, each with its first caption; as an answer to a prompt in stage 2."""
        settings = {"path": PHOTOS, "captions": "first", "limit": self.n_samples}
        return settings if stage == "pretrain" else {**settings, "prompt": PROMPT}

    def samples(self) -> Any:
        """The shared samples, in the order of the file."""
        from tinyalign.data.readers import open_dataset

        return open_dataset(**self.source(self.stage))

    def order(self) -> list[int]:
        """The order in which every contender sees the samples."""
        from tinyalign.training.loop.trainer import SeededOrder

        return list(SeededOrder(self.n_samples, SEED))

    def recipe_settings(self) -> dict[str, Any]:
        """What differs from the shipped recipe: pair, data, the paper's form of memory, no stops.

        The Perceiver gets 20 steps: what it knows has no part in how long a step takes.
        """
        settings = {
            "model.vision": self.tower,
            "model.language": self.language,
            "model.connector": self.pair.connector,
            "model.connector_args": self.pair.connector_args,
            "model.compile": "on",
            "data.pretrain": self.source("pretrain"),
            "data.pretrain_eval": None,
            "data.cache_folder": str(self.work / "cache"),
            "memory.k": self.k,
            "memory.fusion.form": "width",
            "memory.fusion.args": {},
            "memory.fusion.latents_used": 32,
            "memory.fusion.linear_skip": False,
            "memory.fusion.word_skip": False,
            "memory.fusion.hidden_size": None,
            "memory.key.kind": "pooled",
            "memory.bank.captions": None,
            "memory.drop_probability": 0.0,
            "memory.perceiver.min_steps": 0,
            "memory.perceiver.max_steps": 20,
            "memory.perceiver.random_texts": 0.0,
            "memory.perceiver.silence": False,
            "pretrain.batch_size": self.batch_size,
            "pretrain.checkpoint_steps": None,
            "seed": SEED,
        }
        return settings | (self._finetune_settings() if self.stage == "finetune" else {})

    def _finetune_settings(self) -> dict[str, Any]:
        return {
            "data.finetune": self.source("finetune"),
            "finetune.batch_size": self.batch_size,
            "finetune.learning_rate": RATES["finetune"],
            "finetune.template": TEMPLATES["finetune"],
            "finetune.checkpoint_steps": None,
            "start_from": str(self.stage_1_folder),
        }
