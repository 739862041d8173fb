"""The arithmetic of a step, against a count by torch; peaks by a device's name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinyalign.data.collator import Collator
from tinyalign.training.metering.flops import device_peak, model_flops, peak_flops, tower_flops
from tinyalign.training.metering.work import work_of
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun
from tinyalign.training.weights.freeze import freeze


@pytest.mark.parametrize("language", ["frozen", "full"])
@pytest.mark.parametrize("cache", ["features", "none"])
def test_a_step_costs_what_torch_counts(recipe: Recipe, language: str, cache: str) -> None:
    """But for attention scores, and for gradients that a connector's first matrix spares."""
    stage = replace(recipe.pretrain, language=language)
    recipe = replace(recipe, pretrain=stage, data=replace(recipe.data, cache=cache))
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True, exist_ok=True)
    shop = StageRun(recipe, folder, "pretrain")
    dataset = shop.dataset(recipe.data.pretrain)
    freeze(shop.model, shop.args)
    batch = Collator(shop.processor.tokenizer.pad_token_id)([dataset[i] for i in range(4)])
    for row in range(4):  # same length, so that no padding is computed
        batch["attention_mask"][row] = 1
    work = work_of([batch])
    work.supervised_tokens = int((batch["labels"][:, 1:] != -100).sum())
    inputs = {k: v for k, v in batch.items() if k not in ("index", "n_supervised")}
    shop.model.train()
    with FlopCounterMode(display=False) as counter:
        shop.model(**inputs, supervised_only=True, use_cache=False).loss.backward()
    estimate = model_flops(shop.model, cached=cache == "features").of(work)
    counted = counter.get_total_flops() - _attention_scores(shop, batch["input_ids"].shape)
    assert estimate == pytest.approx(counted, rel=0.1)


def _attention_scores(shop: StageRun, shape: torch.Size) -> int:
    """FLOP of Q K^T and of its product with V in the LLM, forward and twice as much backward."""
    text = shop.model.config.text_config
    return 3 * 2 * 2 * text.num_hidden_layers * text.hidden_size * shape[0] * shape[1] ** 2


def test_a_towers_way_forward_is_counted_without_numbers(recipe: Recipe) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    tower = SiglipVisionModel(config)
    layer = 4 * 32 * 32 + 2 * 32 * 64  # matrices of one layer
    least = 2 * 16 * (2 * layer + 3 * 8 * 8 * 32)
    assert least < tower_flops(tower, config) < 1.5 * least


@pytest.mark.parametrize(
    ("device", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "float16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A10G", "bfloat16", 70.0),
        ("NVIDIA A10", "bfloat16", 125.0),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("Tesla T4", "float16", 65.0),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA L400", "bfloat16", None),
        ("some new device", "bfloat16", None),
    ],
)
def test_peaks_are_those_of_the_device_named(device: str, dtype: str, tera: float | None) -> None:
    found = peak_flops(device, dtype)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


def test_a_cpu_has_no_known_peak() -> None:
    assert device_peak(torch.device("cpu"), "bfloat16") is None
