"""Putting backbones together: tokens, embeddings, start scale, and families of LLMs."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Gemma2Config,
    GPT2Config,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.build import build_model
from tinyalign.model.connectors.image import rms

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 64, "max_position_embeddings": 256}
FAMILIES = {
    "qwen2": Qwen2Config(num_key_value_heads=2, tie_word_embeddings=True, **SMALL),
    "phi": PhiConfig(**SMALL),
    "gemma2": Gemma2Config(num_key_value_heads=2, head_dim=8, **SMALL),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4),
    "opt": OPTConfig(word_embed_proj_dim=32, ffn_dim=64, **SMALL),
}


def test_placeholders_are_new_tokens_with_zero_rows(build):
    model, processor = build(k=1)
    ids = [model.config.image_token_id, model.config.memory_token_id]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<image>", "<memory>"]
    assert model.get_input_embeddings().weight[ids].abs().sum() == 0
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.generation_config.suppress_tokens == ids
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_image_tokens_start_as_large_as_text(build, inputs):
    model, processor = build()
    tokens = torch.stack(model.get_image_features(inputs(processor)["pixel_values"]).pooler_output)
    assert 0.5 < rms(tokens) / model.config.token_rms < 2


def test_baseline_and_tinyalign_start_from_the_same_image_connector(build):
    one, two = build()[0].model, build(k=5)[0].model
    for name, weight in one.multi_modal_projector.state_dict().items():
        assert torch.equal(weight, two.multi_modal_projector.state_dict()[name])


def test_a_model_from_a_config_alone_draws_its_connectors_to_scale(build, inputs):
    config = build(k=2, fusion="sequence", memory_linear_skip=True)[0].config
    config.token_rms = 0.3
    model = AutoModelForImageTextToText.from_config(config)
    connector = model.model.memory_connector
    assert connector.fusion.skip.weight.std().item() == pytest.approx(0.3 / 96**0.5, rel=0.02)
    assert connector.fusion.mlp.output.weight.abs().sum() == 0
    assert 0.03 < rms(model.model.multi_modal_projector(torch.randn(1, 16, 32))) < 0.6


def test_the_encoder_for_a_bank_is_the_one_in_the_model(build, photo, inputs):
    model, processor = build()
    encoder = VisionEncoder.from_model(model, processor)
    assert encoder.hash == model.config.vision_hash
    live = model.get_vision_features(inputs(processor)["pixel_values"])
    assert torch.equal(encoder.encode([photo]), live)


def test_the_attention_asked_for_is_the_llms(build):
    model, _ = build(attn_implementation="eager")
    assert model.model.language_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_families_of_language_models(
    family, bos, tiny_vision_dir, make_tokenizer, inputs, tmp_path
):
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer(bos)
    config = FAMILIES[family]
    config.vocab_size = len(tokenizer)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    model, processor = build_model(tiny_vision_dir, tmp_path / "llm")
    batch = inputs(processor)
    ids = batch["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == (1 if bos else 0)
    assert ids.count(model.config.image_token_id) == 16
    model.save_pretrained(tmp_path / "vlm")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
