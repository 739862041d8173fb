"""Packed rows: a sample's logits are those it has alone, whatever its pack-mates are."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModel, Gemma2Config, GPT2Config, MambaConfig, MistralConfig

from tinyalign.data.collator import Collator, PackedCollator, segment_table
from tinyalign.errors import ModelError
from tinyalign.model.packing.attention import (
    disable_packing,
    enable_packing,
    keeps_apart,
    segment_mask,
)
from tinyalign.training.machine.compiling import compile_layers, undo_compile

LENGTHS = (7, 4, 12)  # words behind image and memory tokens


@pytest.fixture(params=["eager", "sdpa"])
def model(request, build):
    """A tiny model with k = 2 whose LLM (4 query heads, 2 key heads) reads packed rows."""
    model, _ = build(k=2, attn_implementation=request.param)
    assert enable_packing(model) == "segments"
    return model


def items_of(model, seed=0):
    """Samples with 16 image tokens, 32 memory tokens and words; the second has words alone."""
    config = model.config
    draw = torch.Generator().manual_seed(seed)
    items = []
    for i, words in enumerate(LENGTHS):
        picture = [config.image_token_id] * 16
        text = torch.randint(3, 300, (words,), generator=draw).tolist()
        memory = [config.memory_token_id] * config.n_memory_tokens
        ids = text if i == 1 else [*picture, *memory, *text]
        item = {
            "input_ids": ids,
            "labels": [-100] * (len(ids) - words) + text,
            "memory_values": torch.randn(2, 32, 96, generator=draw),
            "memory_mask": torch.tensor([i != 1, i == 0]),
        }
        if i != 1:
            item["vision_features"] = [torch.randn(16, 32, generator=draw)]
        items.append(item)
    return items


def run(model, items, collator=PackedCollator, **options):
    batch = collator(0)(items)
    batch.pop("n_supervised")
    return model(**batch, use_cache=False, **options)


def packed_logits(model, items):
    """Logits of each sample, out of one packed row."""
    return run(model, items).logits[0].split([len(item["input_ids"]) for item in items])


def test_logits_are_those_of_a_sample_alone(model):
    items = items_of(model)
    packed = packed_logits(model, items)
    for item, logits in zip(items, packed):
        alone = run(model, [item], Collator).logits[0]
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changed", ["vision_features", "memory_values", "memory_mask", "words"])
def test_logits_do_not_change_when_pack_mates_do(model, changed):
    items, others = items_of(model), items_of(model, seed=1)
    before = packed_logits(model, items)
    if changed == "words":
        items[0]["input_ids"] = others[0]["input_ids"]
    elif changed == "memory_mask":
        items[0]["memory_mask"] = torch.tensor([False, False])
    else:
        items[0][changed] = others[0][changed]
    after = packed_logits(model, items)
    assert not torch.equal(after[0], before[0])  # the change is seen where it was made
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[2], before[2])


def test_without_segments_pack_mates_are_seen(model):
    """What the tests above would miss if isolation did nothing."""
    items, others = items_of(model), items_of(model, seed=1)
    results = []
    for first in (items[0], others[0]):
        batch = PackedCollator(0)([first, *items[1:]])
        embedded = model.get_input_embeddings()(batch["input_ids"])
        row = {"inputs_embeds": embedded, "use_cache": False}
        results.append(model.model.language_model(**row).last_hidden_state[0, -4:])
    assert not torch.allclose(results[0], results[1], atol=1e-3)


def test_loss_and_gradients_are_those_of_padding(model):
    items = items_of(model)
    results = []
    for collator in (Collator, PackedCollator):
        model.train()
        model.zero_grad()
        output = run(model, items, collator, supervised_only=True)
        output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((output.loss, gradients))
    model.eval()
    (padded, wanted), (packed, found) = results
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=0)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_no_label_crosses_from_one_sample_to_the_next(model):
    """Every label set, even the first of a sample: the loss is that of the samples alone."""
    items = [{**item, "labels": [5] * len(item["input_ids"])} for item in items_of(model)]
    count = sum(len(item["labels"]) - 1 for item in items)
    alone = [run(model, [item], Collator, num_items_in_batch=count).loss for item in items]
    packed = run(model, items, num_items_in_batch=count).loss
    torch.testing.assert_close(packed, sum(alone), rtol=1e-5, atol=0)


def test_memory_placeholders_are_counted_sample_by_sample(model):
    items = items_of(model)
    for name in ("input_ids", "labels"):  # one too few here, one too many there
        items[0][name] = items[0][name][:16] + items[0][name][17:]
        items[2][name] = items[2][name][:17] + items[2][name][16:]
    with pytest.raises(ModelError, match="64 memory placeholders in 3 packed samples"):
        run(model, items)


def test_a_learned_prompt_stands_in_every_packed_sample(build):
    model, _ = build(k=2, memory_source="soft_prompt")
    enable_packing(model)
    items = items_of(model)
    for item in items:
        del item["memory_values"], item["memory_mask"]
    for item, logits in zip(items, packed_logits(model, items)):
        alone = run(model, [item], Collator).logits[0]
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_keeps_samples_apart(model):
    items = items_of(model)
    wanted = packed_logits(model, items)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for found, logits in zip(packed_logits(model, items), wanted):
        torch.testing.assert_close(found, logits)
    model.eval()
    model.gradient_checkpointing_disable()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_layers_and_loss_give_the_gradients_of_plain_ones(model):
    """Compiled, cells are copied by an operation of its own; two rows of other lengths too."""
    rows = [items_of(model), items_of(model, seed=1)[:2]]

    def gradients():
        model.zero_grad()
        for items in rows:
            run(model, items, supervised_only=True).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = gradients()
    compile_layers(model, "on", 1)
    found = gradients()
    undo_compile(model)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_padded_batches_still_run_and_everything_can_be_undone(model):
    items = items_of(model)
    with_packing = run(model, items, Collator).logits
    disable_packing(model)
    assert model.model.language_model.config._attn_implementation in ("eager", "sdpa")
    torch.testing.assert_close(run(model, items, Collator).logits, with_packing)
    enable_packing(model)
    assert "segments_" not in model.config.to_json_string()


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)


class Holder(torch.nn.Module):
    """What `enable_packing` looks at of a TinyAlign model."""

    def __init__(self, config, attention):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Module()
        self.model.language_model = AutoModel.from_config(
            config, attn_implementation=attention
        ).eval()


@pytest.mark.parametrize(
    ("config", "attention", "isolation"),
    [
        (GPT2, "sdpa", "segments"),
        (Gemma2Config(**SMALL, sliding_window=4), "eager", "segments"),
        (MistralConfig(**SMALL, sliding_window=2), "sdpa", "segments"),
        pytest.param(MistralConfig(**SMALL), "flex_attention", "positions", marks=pytest.mark.slow),
        (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), "eager", None),
    ],
    ids=["gpt2", "gemma2", "mistral", "flex", "mamba"],
)
def test_each_kind_of_model_gets_what_keeps_its_samples_apart(config, attention, isolation):
    holder = Holder(config, attention)
    assert enable_packing(holder) == isolation
    llm = holder.model.language_model
    if isolation is not None:
        assert keeps_apart(llm)
    disable_packing(holder)
    assert llm.config._attn_implementation == attention


def test_a_window_is_a_window_within_the_sample():
    """Samples longer than the window: as alone, through the model's own masks."""
    holder = Holder(MistralConfig(**SMALL, sliding_window=3), "eager")
    llm = holder.model.language_model
    lengths, ids = [9, 6], torch.arange(3, 18)
    alone = [llm(part[None], use_cache=False).last_hidden_state[0] for part in ids.split(lengths)]
    enable_packing(holder)
    found = llm(
        ids[None],
        attention_mask=segment_mask(llm, segment_table(lengths)),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        use_cache=False,
    ).last_hidden_state[0]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
