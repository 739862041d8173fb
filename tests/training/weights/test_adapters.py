"""LoRA and QLoRA: what is trained, what is saved, and that merging changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tinyalign.errors import ConfigError
from tinyalign.model.build import build_model
from tinyalign.model.modeling import TinyAlignForConditionalGeneration
from tinyalign.training.estimate.stage_ram import four_bit_bytes
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import LoraArgs, StageArgs
from tinyalign.training.weights import adapters
from tinyalign.training.weights.adapters import (
    adapter_parameters,
    add_adapters,
    check_installed,
    merge_adapters,
    quantize_linears,
    save_adapter,
)
from tinyalign.training.weights.freeze import freeze

peft = pytest.importorskip("peft", reason="peft is not installed")

LORA = StageArgs(language="lora", lora=LoraArgs(r=4, alpha=8.0))


def new(vision: Path, language: Path, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return build_model(vision, language, k=2, dtype=dtype, template="plain")[0]


@pytest.fixture
def model(tiny_vision_dir: Path, tiny_llm_dir: Path):
    return new(tiny_vision_dir, tiny_llm_dir)


def a_batch(model) -> dict[str, torch.Tensor]:
    """One picture, two memories, three words."""
    n_image, n_memory = model.config.image_seq_length, model.config.n_memory_tokens
    ids = [model.config.image_token_id] * n_image + [model.config.memory_token_id] * n_memory
    torch.manual_seed(1)
    return {
        "input_ids": torch.tensor([[*ids, 40, 41, 42]]),
        "pixel_values": torch.randn(1, 3, 32, 32),
        "memory_values": torch.randn(1, 2, 32, 96),
    }


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(**a_batch(model)).logits.float()


@torch.no_grad()
def moved(model) -> None:
    """Give everything that is trained other numbers, as training would."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_new_adapters_change_nothing_and_only_they_and_the_connectors_are_trained(model) -> None:
    before = logits(model)
    freeze(model, LORA)
    assert torch.equal(logits(model), before)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {n for n in trained if "language_model" in n} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }
    assert any("multi_modal_projector" in n for n in trained)
    assert any("memory_connector" in n for n in trained)
    assert not any("vision_tower" in n or "lm_head" in n for n in trained)


def test_the_account_counts_adapters_as_trained(model, caplog) -> None:
    whole = sum(p.numel() for p in model.model.language_model.parameters())
    with caplog.at_level("INFO", "tinyalign"):
        report = freeze(model, LORA)
    # r (in + out) for every linear layer: q, o 32 -> 32; k, v 32 -> 16; gate, up, down 32 x 64
    size = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    part = next(p for p in report.parts if p.name == "language model")
    assert (part.trained, part.frozen, part.adapters) == (size, whole, size)
    assert f"language model: {size:,} trained in adapters, {whole:,} frozen" in caplog.text


def test_adapters_start_the_same_whatever_was_drawn_before(tiny_vision_dir, tiny_llm_dir) -> None:
    values = []
    for seed, drawn in ((3, 0), (3, 5), (4, 0)):
        model = new(tiny_vision_dir, tiny_llm_dir)
        torch.rand(drawn)
        state = torch.get_rng_state()
        add_adapters(model, LORA, seed)
        assert torch.equal(torch.get_rng_state(), state)
        values.append(torch.cat([p.flatten() for p in adapter_parameters(model)]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_targets_by_name(model) -> None:
    freeze(model, replace(LORA, lora=LoraArgs(targets=["q_proj", "v_proj"])))
    names = {n.split(".")[-4] for n, _ in model.named_parameters() if ".lora_" in n}
    assert names == {"q_proj", "v_proj"}


def test_an_unknown_target_is_named_with_those_there_are(model) -> None:
    with pytest.raises(ConfigError, match=r"no linear layers called c_attn; it has .*q_proj"):
        freeze(model, replace(LORA, lora=LoraArgs(targets=["c_attn", "q_proj"])))


def test_merging_changes_no_logit_and_leaves_a_plain_model(model) -> None:
    plain = {name for name, _ in model.named_parameters()}
    before = logits(model)
    freeze(model, LORA)
    moved(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, atol=1e-2)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=1e-5)
    assert {name for name, _ in model.named_parameters()} == plain


def test_in_bfloat16_adapters_are_float32_and_a_merge_rounds_once(
    tiny_vision_dir, tiny_llm_dir
) -> None:
    model = new(tiny_vision_dir, tiny_llm_dir, torch.bfloat16)
    freeze(model, LORA)
    assert {p.dtype for p in adapter_parameters(model)} == {torch.float32}
    moved(model)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = (layer.base_layer.weight.float() + 8.0 / 4 * (b @ a)).to(torch.bfloat16)
    merge_adapters(model)
    assert torch.equal(model.model.language_model.layers[0].self_attn.q_proj.weight, wanted)


@pytest.mark.parametrize("connectors", ["full", "frozen"])
def test_the_adapter_folder_is_read_by_peft(
    model, tiny_vision_dir, tiny_llm_dir, tmp_path, connectors
) -> None:
    stage = replace(LORA, connectors=connectors)
    freeze(model, stage)
    moved(model)
    save_adapter(model, stage, tmp_path, "start")
    start = new(tiny_vision_dir, tiny_llm_dir)
    loaded = peft.PeftModel.from_pretrained(start, tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert json.loads((tmp_path / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == ("start")
    merged = loaded.merge_and_unload()
    assert type(merged) is TinyAlignForConditionalGeneration
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "package"), [("lora", "peft"), ("qlora", "bitsandbytes")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, mode: str, package: str) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == package else object())
    extra = "peft" if mode == "lora" else "qlora"
    with pytest.raises(ConfigError, match=rf"needs {package}.*tinyalign-vlm\[{extra}\]"):
        check_installed(StageArgs(language=mode))


def test_stage_one_has_no_model_to_adapt(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="use them in finetune"):
        replace(recipe, pretrain=LORA)


# -- in 4 bits ------------------------------------------------------------------------------------

QLORA = replace(LORA, language="qlora")


def needs_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def test_qlora_keeps_the_linear_layers_in_4_bits_and_counts_their_weights(model) -> None:
    needs_bitsandbytes()
    whole = sum(p.numel() for p in model.model.language_model.parameters())
    exact = logits(model)
    report = freeze(model, QLORA)
    part = next(p for p in report.parts if p.name == "language model")
    assert (part.frozen, part.dtype) == (whole, "float32, nf4")
    base = model.model.language_model.layers[0].mlp.up_proj.base_layer
    assert (base.weight.dtype, base.weight.numel()) == (torch.uint8, 32 * 64 // 2)
    rough = logits(model)
    assert not torch.equal(rough, exact)
    assert torch.corrcoef(torch.stack([rough.flatten(), exact.flatten()]))[0, 1] > 0.98


def test_the_estimate_of_four_bits_is_what_bitsandbytes_holds() -> None:
    needs_bitsandbytes()
    layer = nn.ModuleDict({"up": nn.Linear(576, 1536, bias=False)})
    quantize_linears(layer, torch.bfloat16)
    weight = layer.to("cpu")["up"].weight
    scales, scales_of_scales = weight.quant_state.absmax, weight.quant_state.state2.absmax
    held = sum(t.numel() * t.itemsize for t in (weight, scales, scales_of_scales))
    assert held == four_bit_bytes(576 * 1536)


def test_qlora_is_merged_into_the_weights_it_was_trained_against(model) -> None:
    needs_bitsandbytes()
    freeze(model, QLORA)
    moved(model)
    adapted = logits(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
