"""Every shipped recipe, run for two steps a stage with tiny random weights of its families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.files import load_recipe, shipped_recipes
from tinyalign.training.run import train

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
# family → (config, model, whether its tokenizer adds BOS)
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, False),
    "llama": (LlamaConfig, LlamaForCausalLM, True),
    "smollm2": (LlamaConfig, LlamaForCausalLM, False),
    "phi": (PhiConfig, PhiForCausalLM, False),
}


@pytest.fixture(scope="session")
def llms(tmp_path_factory: pytest.TempPathFactory, make_tokenizer) -> dict[str, Path]:
    """A tiny random model of each family, in a folder."""
    folders = {}
    for name, (config, model, bos) in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        tokenizer = make_tokenizer(bos=bos)
        torch.manual_seed(0)
        tied = name != "phi"
        made = config(vocab_size=len(tokenizer), tie_word_embeddings=tied, **SIZES)
        model(made).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP vision tower: a class token and 4 x 4 patches."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if k.startswith(("hidden", "intermediate", "num_h"))}
    sizes["num_attention_heads"] = 4
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return folder


def family(language: str) -> str:
    """The family of a language model that a recipe names."""
    known = {"Qwen": "qwen2", "Tiny": "llama", "micr": "phi", "smol": "smollm2"}
    return known[language[:4]]


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.slow  # a run for each recipe
def test_two_steps(
    name: str,
    llms: dict[str, Path],
    clip_dir: Path,
    tiny_vision_dir: Path,
    pairs: Path,
    questions: Path,
    held_out: Path,
    cache_folder: Path,
    tmp_path: Path,
) -> None:
    shipped = load_recipe(name)
    tower = clip_dir if "clip" in shipped.model.vision else tiny_vision_dir
    short = {"batch_size": 4, "micro_batch_size": 2, "max_steps": 2, "checkpoint_steps": None}
    changed: dict[str, object] = {
        "model.language": str(llms[family(shipped.model.language)]),
        "model.vision": str(tower),
        "data.pretrain.path": str(pairs),
        "data.pretrain.format": "auto",
        "data.pretrain.image_folder": None,
        "data.max_length": 512,  # bytes, nearly: the tiny tokenizer knows few words
        "data.cache_folder": str(cache_folder),
        "memory.compress.max_steps": 1,
        "memory.compress.vocab_size": 300,
        "memory.compress.batch_size": 4,
        "device": "cpu",
        "output": str(tmp_path / "run"),
        **{f"pretrain.{key}": value for key, value in short.items()},
        **{f"finetune.{key}": value for key, value in short.items()},
    }
    if shipped.data.finetune is not None:
        changed["data.finetune.path"] = str(questions)
        changed["data.finetune.format"] = "auto"
        changed["data.finetune.image_folder"] = None
    for source in ("pretrain_eval", "finetune_eval"):
        if getattr(shipped.data, source) is not None:
            changed[f"data.{source}.path"] = str(held_out)
    recipe = load_recipe(name, changed)
    result = train(recipe)
    losses = [x["loss"] for x in read_metrics(result.folder / "metrics.jsonl") if "loss" in x]
    assert len(losses) == (2 if shipped.data.finetune is None else 4)
    assert all(0 < loss < 10 for loss in losses)
    assert result.bank is not None
