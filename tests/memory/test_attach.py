from __future__ import annotations

import shutil

import pytest
import torch

from tinyalign.data.images import load_image
from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.attach import attach_memory, detach_memory
from tinyalign.memory.search.retriever import Exclusion
from tinyalign.model.build import build_model


@pytest.fixture(scope="module")
def made(tiny_vision_dir, tiny_llm_dir, perceiver):
    """A model for k = 3 that says it was trained with the bank's Perceiver, and its processor."""
    torch.manual_seed(0)
    model, processor = build_model(
        tiny_vision_dir,
        tiny_llm_dir,
        k=3,
        perceiver_config=perceiver.network.config,
        memory_latents_used=8,
    )
    model.config.perceiver_hash = perceiver.hash
    return model, processor


@pytest.fixture
def pair(made):
    """The model without memory, its config as it was; whatever a test attaches is undone."""
    model, processor = made
    before = dict(model.config.__dict__)
    yield model, processor
    model.config.__dict__.update(before)
    detach_memory(model, processor)


def inputs(processor, sample):
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": load_image(sample.images[0])},
                {"type": "text", "text": sample.instruction},
            ],
        }
    ]
    return processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def test_generate_retrieves_by_itself(pair, bank, samples) -> None:
    model, processor = pair
    retriever = attach_memory(model, processor, bank.folder)
    batch = inputs(processor, samples[4])
    assert int((batch["input_ids"] == model.config.memory_token_id).sum()) == 8
    model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert model.last_retrieval.ids[0][0] == "s4"
    assert model.last_retrieval.scores[0, 0] == pytest.approx(1.0, abs=1e-4)
    hits = retriever.search(text=samples[4].instruction, features=retrieved(model, batch))
    assert [hit.entry.id for hit in hits] == model.last_retrieval.ids[0]


def retrieved(model, batch) -> torch.Tensor:
    return model.get_vision_features(batch["pixel_values"])[0]


def test_generate_passes_exclusions_on(pair, bank, samples) -> None:
    model, processor = pair
    attach_memory(model, processor, bank.folder)
    out = Exclusion(ids=("s4",))
    model.generate(**inputs(processor, samples[4]), max_new_tokens=1, memory_exclude=[out])
    assert "s4" not in model.last_retrieval.ids[0]


def test_fewer_memories_than_the_model_has_room_for(pair, bank, samples) -> None:
    model, processor = pair
    attach_memory(model, processor, bank.folder, k=1)
    model.generate(**inputs(processor, samples[4]), max_new_tokens=1)
    assert model.last_retrieval.ids == [["s4"]]
    assert model.last_retrieval.mask.tolist() == [[True, False, False]]


def test_how_the_bank_is_searched_may_be_said(pair, bank) -> None:
    retriever = attach_memory(*pair, bank.folder)
    assert (retriever.index.engine, retriever.index.recall) == ("auto", 0.95)
    assert retriever.search_settings == {}
    retriever = attach_memory(*pair, bank.folder, engine="ivf", recall=0.5)
    assert (retriever.index.engine, retriever.index.recall) == ("ivf", 0.5)
    assert retriever.search_settings == {"engine": "ivf", "recall": 0.5}
    with pytest.raises(ConfigError, match="expected auto, exact or ivf"):
        attach_memory(*pair, bank.folder, engine="hnsw")


def test_without_a_bank_there_are_no_placeholders_and_no_queries(pair, bank, samples) -> None:
    model, processor = pair
    attach_memory(model, processor, bank.folder)
    detach_memory(model, processor)
    batch = inputs(processor, samples[4])
    assert "memory_query_ids" not in batch
    assert not (batch["input_ids"] == model.config.memory_token_id).any()
    model.generate(**batch, max_new_tokens=1)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("vision_hash", "0" * 16, "vision encoders differ.*0000"),
        ("perceiver_hash", "0" * 16, "Perceivers differ.*0000"),
        ("perceiver_hash", None, "Perceivers differ.*none"),
        ("memory_k", 0, "without retrieved memories"),
        ("memory_source", "soft_prompt", "without retrieved memories"),
    ],
)
def test_a_bank_for_another_model_is_refused_and_the_reason_named(
    field, value, what, pair, bank
) -> None:
    model, processor = pair
    setattr(model.config, field, value)
    with pytest.raises(BankError, match=what):
        attach_memory(model, processor, bank.folder)
    assert model.retriever is None
    assert not processor.memory_enabled


def test_a_model_that_names_no_encoder_is_asked_itself(pair, bank) -> None:
    model, processor = pair
    model.config.vision_hash = None
    attach_memory(model, processor, bank.folder)
    parameter = next(model.model.vision_tower.parameters())
    with torch.no_grad():
        parameter.add_(1.0)
    try:
        with pytest.raises(BankError, match="vision encoders differ"):
            attach_memory(model, processor, bank.folder)
    finally:
        with torch.no_grad():
            parameter.sub_(1.0)


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_what_the_model_takes_is_refused(k, pair, bank) -> None:
    with pytest.raises(BankError, match="1 to 3"):
        attach_memory(*pair, bank.folder, k=k)


def test_a_bank_without_its_compressor_is_refused_by_name(pair, bank, tmp_path) -> None:
    copy = shutil.copytree(bank.folder, tmp_path / "copy")
    (copy / "compressor" / "tokenizer.json").unlink()
    with pytest.raises(BankError, match=r"tokenizer\.json"):
        attach_memory(*pair, copy)
