"""The model: [H_V | H_R | H_I] into the LLM, the same answer whichever way it is fed or loaded."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from tinyalign.errors import ModelError

FORMS = [(k, fusion) for k in (0, 1, 5, 10) for fusion in ("width", "sequence")]
FORMS = [(k, fusion, 32 if fusion == "width" else 4 * k) for k, fusion in FORMS]


@pytest.fixture(scope="module")
def baseline(build):
    return build()


@pytest.fixture(scope="module")
def tinyalign(build):
    model, processor = build(k=2)
    processor.memory_enabled = True
    return model, processor


@pytest.mark.parametrize(("k", "fusion", "n_tokens"), FORMS)
def test_every_k_and_fusion_runs_and_reads_its_memories(
    build, inputs, memories, k, fusion, n_tokens
):
    model, processor = build(k=k, fusion=fusion, memory_latents_used=4)
    processor.memory_enabled = True
    batch = inputs(processor, ["what color?", "why?"])
    found = (batch["input_ids"] == model.config.memory_token_id).sum(1).tolist()
    assert found == [n_tokens if k else 0] * 2
    if k == 0:
        assert torch.isfinite(model(**batch).logits).all()
        return
    values = memories(2, k)
    logits = model(**batch, memory_values=values).logits
    other = model(**batch, memory_values=values.flip(0)).logits
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[:, -1], other[:, -1])


def test_a_bank_smaller_than_k(build, inputs, memories):
    model, processor = build(k=5)
    processor.memory_enabled = True
    batch, values = inputs(processor), memories(1, 5)
    mask = torch.tensor([[True, True, True, False, False]])
    masked = model(**batch, memory_values=values, memory_mask=mask).logits
    assert torch.equal(model(**batch, memory_values=values[:, :3]).logits, masked)


def test_retrieval_off_needs_nothing(tinyalign, inputs):
    model, processor = tinyalign
    processor.memory_enabled = False
    batch = inputs(processor)
    processor.memory_enabled = True
    assert torch.isfinite(model(**batch).logits).all()
    words = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(
        words,
        model.lm_head(
            model.model.language_model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
        ),
    )


def test_a_count_mismatch_is_an_error_with_both_numbers(tinyalign, inputs, memories):
    model, processor = tinyalign
    batch = inputs(processor)
    ids = batch["input_ids"]
    with pytest.raises(ModelError, match="32 memory placeholders but no memory_values") as error:
        model(**batch)
    assert "model.retriever.retrieve" in str(error.value)  # true with and without a bank attached
    cut = ids[ids != model.config.memory_token_id][None]
    pixels = batch["pixel_values"]
    with pytest.raises(ModelError, match=r"Found 0 memory placeholders.* = 32 memory features"):
        model(input_ids=cut, pixel_values=pixels, memory_values=memories(1, 2))
    with pytest.raises(ModelError, match="Found 16 image placeholders but no image"):
        model(input_ids=cut)
    with pytest.raises(ModelError, match="Found 16 image placeholders for 32 image features"):
        model(input_ids=cut, pixel_values=torch.cat([pixels, pixels]))
    # Right in sum, wrong in each row: still an error, or memories would slip between samples.
    uneven = torch.full((2, 64), 5)
    uneven[0] = model.config.memory_token_id
    with pytest.raises(ModelError, match="64 memory placeholders in 2 rows"):
        model(input_ids=uneven, memory_values=memories(2, 2))


def test_the_baseline_refuses_memories(baseline, memories):
    model, _ = baseline
    with pytest.raises(ModelError, match="memory_k is 0"):
        model(input_ids=torch.tensor([[5, 6]]), memory_values=memories(1, 2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_know_neither_padding_nor_batch(tinyalign, inputs, memories, side):
    model, processor = tinyalign
    texts = ["why?", "what color is the circle in the park?"]
    values = memories(2, 2)
    batch = inputs(processor, texts, padding_side=side)
    logits = model(**batch, memory_values=values).logits
    for row, text in enumerate(texts):
        alone = model(**inputs(processor, [text]), memory_values=values[row : row + 1]).logits[0]
        real = logits[row][batch["attention_mask"][row].bool()]
        torch.testing.assert_close(real, alone, atol=1e-5, rtol=1e-4)


def test_cached_features_equal_pixels_to_the_bit(tinyalign, inputs, memories):
    model, processor = tinyalign
    batch, values = inputs(processor), memories(1, 2)
    live = model(**batch, memory_values=values).logits
    pixels = batch.pop("pixel_values")
    features = model.get_vision_features(pixels)
    assert features.shape == (1, 16, 32)
    cached = model(**batch, vision_features=features, memory_values=values).logits
    encoded = {"image": model.get_image_features(pixels)}
    slot = model(**batch, mm_encoder_outputs=encoded, memory_values=values).logits
    assert torch.equal(live, cached)
    assert torch.equal(live, slot)


def labelled(batch):
    labels = batch["input_ids"].clone()
    labels[:, :-4] = -100
    labels[0, -2] = -100
    return labels


def test_supervised_only_is_the_same_loss_with_less_arithmetic(tinyalign, inputs, memories):
    model, processor = tinyalign
    batch = inputs(processor, ["why?", "what color is it?"])
    given = {**batch, "memory_values": memories(2, 2), "labels": labelled(batch)}
    full, short = model(**given), model(**given, supervised_only=True)
    assert short.logits.shape[:2] == (1, 7)
    assert full.logits.shape[:2] == batch["input_ids"].shape
    torch.testing.assert_close(short.loss, full.loss)
    expected = torch.nn.functional.cross_entropy(
        full.logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(full.loss, expected)


@pytest.mark.parametrize("supervised_only", [False, True])
def test_num_items_in_batch_divides_the_summed_loss(tinyalign, inputs, memories, supervised_only):
    model, processor = tinyalign
    batch = inputs(processor)
    given = {**batch, "memory_values": memories(1, 2), "labels": labelled(batch)}
    given["supervised_only"] = supervised_only
    mean, n_items = model(**given).loss, 3
    divided = model(**given, num_items_in_batch=torch.tensor(12)).loss
    torch.testing.assert_close(divided, mean * n_items / 12)


def test_gradients_reach_the_connectors_alone_when_the_rest_is_frozen(tinyalign, inputs, memories):
    model, processor = tinyalign
    trained = ("multi_modal_projector", "memory_connector")
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(part in name for part in trained)
        batch = inputs(processor)
        model(**batch, memory_values=memories(1, 2), labels=labelled(batch)).loss.backward()
        moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
        assert all(
            parameter.grad.abs().sum() > 0
            for parameter in model.parameters()
            if parameter.grad is not None
        )
    finally:
        model.requires_grad_(True)
        model.zero_grad(set_to_none=True)


def test_a_frozen_tower_keeps_no_graph(tinyalign, inputs):
    model, processor = tinyalign
    pixels = inputs(processor)["pixel_values"]
    assert model.get_vision_features(pixels).requires_grad
    model.model.vision_tower.requires_grad_(False)
    assert not model.get_vision_features(pixels).requires_grad
    model.model.vision_tower.requires_grad_(True)


def test_packed_samples_do_not_see_each_other(tinyalign):
    model, _ = tinyalign
    one, two, other = torch.randint(5, 200, (3, 1, 6))
    positions = torch.cat([torch.arange(6), torch.arange(6)])[None]

    def second(first):
        ids = torch.cat([first, two], dim=1)
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 6:]

    torch.testing.assert_close(second(one), second(other), atol=1e-6, rtol=0)
    torch.testing.assert_close(second(one), model(input_ids=two).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"k": 2},
        {"k": 2, "fusion": "sequence", "memory_latents_used": 4, "memory_linear_skip": True},
        {"k": 2, "memory_source": "soft_prompt"},
        {"connector": "resampler", "connector_args": {"num_queries": 4}},
        {"connector": "pixel_shuffle"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "baseline",
)
def test_saved_models_give_the_same_logits(build, inputs, memories, tmp_path, settings):
    model, processor = build(**settings)
    processor.memory_enabled = True
    batch = inputs(processor)
    if settings.get("k"):
        batch["memory_values"] = memories(1, 2)
    model.save_pretrained(tmp_path)
    loaded, notes = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert AutoConfig.from_pretrained(tmp_path).n_memory_tokens == model.config.n_memory_tokens
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight  # still tied
    bare = AutoModel.from_pretrained(tmp_path)
    hidden = model.model(**batch).last_hidden_state
    assert torch.equal(bare(**batch).last_hidden_state, hidden)


def test_connectors_stay_float32_in_a_bfloat16_model(build, inputs, memories, tmp_path):
    model, processor = build(k=2, dtype=torch.bfloat16)
    processor.memory_enabled = True
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for some in (model, loaded):
        assert some.model.multi_modal_projector.output.weight.dtype == torch.float32
        assert some.model.memory_connector.dtype == torch.float32
        assert some.lm_head.weight.dtype == torch.bfloat16
    batch, values = inputs(processor), memories(1, 2)
    logits = [some(**batch, memory_values=values).logits for some in (model, loaded)]
    assert torch.equal(*logits)


def test_a_baseline_checkpoint_can_gain_a_memory(baseline, inputs, memories, tmp_path, build):
    model, _ = baseline
    _, processor = build(k=3)
    processor.memory_enabled = True
    model.save_pretrained(tmp_path)
    settings = {"memory_k": 3, "memory_fusion": "sequence", "memory_linear_skip": True}
    grown = AutoModelForImageTextToText.from_pretrained(tmp_path, **settings)
    weight = grown.model.memory_connector.fusion.skip.weight
    expected = model.config.token_rms / 96**0.5  # drawn as a new connector's, not left as it lay
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    assert grown.model.memory_connector.fusion.mlp.output.weight.abs().sum() == 0
    ids = torch.tensor([[5, 6]])
    assert torch.equal(grown(input_ids=ids).logits, model(input_ids=ids).logits)


def test_lora_wraps_trains_and_saves(build, inputs, memories, tmp_path):
    peft = pytest.importorskip("peft", reason="peft not installed")
    model, processor = build(k=2)
    processor.memory_enabled = True
    batch, values = inputs(processor), memories(1, 2)
    before = model(**batch, memory_values=values).logits
    config = peft.LoraConfig(
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        modules_to_save=["multi_modal_projector", "memory_connector"],
    )
    wrapped = peft.get_peft_model(model, config)
    torch.testing.assert_close(wrapped(**batch, memory_values=values).logits, before)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or ("memory_connector" in name and parameter.requires_grad):
                parameter.add_(0.05)
    after = wrapped(**batch, memory_values=values).logits
    assert not torch.equal(after, before)
    wrapped.save_pretrained(tmp_path)
    fresh, _ = build(k=2)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(loaded(**batch, memory_values=values).logits, after)
