"""The model pairs, the samples and the settings that every contender shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = "smollm2-135m-efficientnet-flickr8k"
PHOTOS = "../shared/data/flickr8k/train.parquet"
PROMPT = "Describe the photo."
SAMPLES = 2000
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

    def tower(self, work: Path) -> str:
        """What `load_vision` takes."""
        folder = work / self.vision
        return str(folder) if folder.is_dir() else self.vision


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            "siglip",
            "SmolLM2-135M + a tower of SigLIP-B/16-224's shape (random weights), 49 image tokens",
            "siglip-b16-224",
            "pixel_shuffle",
            {"factor": 2},
        ),
        Pair(
            "efficientnet",
            "SmolLM2-135M + EfficientNet-Lite2 (ImageNet weights), 81 image tokens",
            "efficientnet-lite2",
            "mlp2x_gelu",
            {},
        ),
    )
}


def language(work: Path) -> str:
    """The unpacked LLM's folder."""
    return str(work / "smollm2-135m")


def source(stage: str) -> dict[str, Any]:
    """The 2,000 photos, each with its first caption; as an answer to a prompt in stage 2."""
    settings = {"path": PHOTOS, "captions": "first", "limit": SAMPLES}
    return settings if stage == "pretrain" else {**settings, "prompt": PROMPT}


def recipe_settings(pair: Pair, work: Path, stage: str, k: int, batch_size: int) -> dict[str, Any]:
    """What differs from the shipped recipe: pair, data, the paper's form of memory, no stops.

    The Perceiver gets 20 steps: what it knows has no part in how long a step takes.
    """
    settings = {
        "model.vision": pair.tower(work),
        "model.language": language(work),
        "model.connector": pair.connector,
        "model.connector_args": pair.connector_args,
        "model.compile": "on",
        "data.pretrain": source("pretrain"),
        "data.pretrain_eval": None,
        "data.cache_folder": str(work / "cache"),
        "memory.k": k,
        "memory.fusion": "width",
        "memory.fusion_args": {},
        "memory.latents_used": 32,
        "memory.linear_skip": False,
        "memory.key": "pooled",
        "memory.captions": None,
        "memory.drop_probability": 0.0,
        "memory.compress.min_steps": 0,
        "memory.compress.max_steps": 20,
        "pretrain.batch_size": batch_size,
        "pretrain.checkpoint_steps": None,
        "seed": SEED,
    }
    if stage == "finetune":
        settings |= {
            "data.finetune": source("finetune"),
            "finetune.batch_size": batch_size,
            "finetune.learning_rate": RATES["finetune"],
            "finetune.template": TEMPLATES["finetune"],
            "finetune.checkpoint_steps": None,
            "start_from": str(stage_1_folder(pair, work, k)),
        }
    return settings


def stage_1_folder(pair: Pair, work: Path, k: int) -> Path:
    """A run of stage 1, one step long, for stage 2 to start from."""
    return work / f"start-{pair.name}-k{k}"


def samples(stage: str) -> Any:
    """The shared samples, in the order of the file."""
    from tinyalign.data.readers import open_dataset

    return open_dataset(**source(stage))


def order() -> list[int]:
    """The order in which every contender sees the samples."""
    from tinyalign.training.trainer import SeededOrder

    return list(SeededOrder(SAMPLES, SEED))
