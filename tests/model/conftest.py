"""Tiny TinyAlign models, built from the tiny backbones as a user would build theirs."""

from __future__ import annotations

import pytest
import torch

from tinyalign.model.build import build_model
from tinyalign.model.protocols import MemoryBatch


@pytest.fixture(scope="session")
def build(tiny_vision_dir, tiny_llm_dir):
    """`build(**settings)`: a tiny (model, processor), always from the same seed."""

    def make(**settings):
        torch.manual_seed(0)
        settings.setdefault("dtype", torch.float32)
        return build_model(tiny_vision_dir, tiny_llm_dir, **settings)

    return make


@pytest.fixture
def chat():
    """`chat(image, text)`: one user turn with an image."""

    def make(image, text="what color?"):
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    return make


@pytest.fixture
def inputs(photo, chat):
    """`inputs(processor, texts, **options)`: a left-padded batch, each text asked of the photo."""

    def make(processor, texts=("what color?",), padding_side="left", **options):
        return processor.apply_chat_template(
            [chat(photo, text) for text in texts],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": padding_side},
            **options,
        )

    return make


@pytest.fixture
def memories():
    """`memories(batch, k)`: memory values of unit RMS, always the same."""

    def make(batch, k):
        return torch.randn(batch, k, 32, 96, generator=torch.Generator().manual_seed(1))

    return make


class FakeRetriever:
    """Answers every query with the same values and keeps what it was asked."""

    def __init__(self, k):
        self.k = k
        self.queries = []

    def retrieve(self, vision_features, query_ids=None, exclude=None):
        self.queries.append((vision_features, query_ids, exclude))
        batch = vision_features.shape[0]
        values = vision_features.mean() * torch.ones(batch, self.k, 32, 96)
        mask = torch.ones(batch, self.k, dtype=torch.bool)
        return MemoryBatch(values, mask, torch.ones(batch, self.k), [["a"] * self.k] * batch)


@pytest.fixture
def fake_retriever():
    return FakeRetriever
