"""Batches without images or memories have the graph of those with them, and the same result."""

from __future__ import annotations

import pytest
import torch

WORDS = torch.tensor([[5, 6, 7, 8]])
CONNECTORS = ("multi_modal_projector", "memory_connector")


@pytest.mark.parametrize("connector", ["mlp2x_gelu", "pixel_shuffle"])
def test_text_alone_gives_every_trained_parameter_a_gradient_of_zero(build, connector):
    model, _ = build(k=2, connector=connector)
    silent = model(input_ids=WORDS, labels=WORDS).loss
    model.train()
    loss = model(input_ids=WORDS, labels=WORDS).loss
    assert torch.equal(loss, silent)
    loss.backward()
    for name in CONNECTORS:
        for parameter in getattr(model.model, name).parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()
    patches = model.model.vision_tower.embeddings.patch_embedding.weight
    assert patches.grad is not None
    assert not patches.grad.any()
    assert model.model.vision_tower.training
    assert model.model.language_model.get_input_embeddings().weight.grad.any()


def test_frozen_connectors_are_left_alone(build, monkeypatch):
    model, _ = build(k=2)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    monkeypatch.setattr(model.model.multi_modal_projector, "forward", None)
    model.train()
    assert torch.isfinite(model(input_ids=WORDS, labels=WORDS).loss)
