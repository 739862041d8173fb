"""What is frozen stays to the bit, what is trained moves, and the account is exact."""

from __future__ import annotations

import itertools

import pytest
import torch

from tinyalign.model.build import build_model
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.weights.freeze import account, freeze, part_of_parameters


@pytest.fixture
def model(tiny_vision_dir, tiny_llm_dir):
    torch.manual_seed(0)
    return build_model(tiny_vision_dir, tiny_llm_dir, k=2, dtype=torch.float32, template="plain")[0]


def a_step(model) -> dict[str, torch.Tensor]:
    """Parameters before one optimiser step on a made batch."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    n_image, n_memory = model.config.image_seq_length, model.config.n_memory_tokens
    ids = [model.config.image_token_id] * n_image + [model.config.memory_token_id] * n_memory
    ids = torch.tensor([[*ids, 40, 41, 42]])
    labels = ids.clone()
    labels[:, :-3] = -100
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=10.0)
    loss = model(
        input_ids=ids,
        labels=labels,
        pixel_values=torch.randn(1, 3, 32, 32),
        memory_values=torch.randn(1, 2, 32, 96),
        supervised_only=True,
    ).loss
    loss.backward()
    optimizer.step()
    return before


MODES = [m for m in itertools.product(("frozen", "full"), repeat=3) if "full" in m]


@pytest.mark.parametrize(("connectors", "language", "vision"), MODES)
def test_exactly_the_parts_asked_for_move(model, connectors, language, vision) -> None:
    stage = StageArgs(connectors=connectors, language=language, vision=vision)
    freeze(model, stage)
    before = a_step(model)
    mode = {
        "image connector": connectors,
        "memory connector": connectors,
        "language model": language,
        "vision tower": vision,
    }
    owner = part_of_parameters(model)
    moved = {
        owner[name]
        for name, value in model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {part for part, how in mode.items() if how == "full"}


def test_the_account_is_exact_and_logged(model, caplog) -> None:
    with caplog.at_level("INFO", "tinyalign"):
        report = freeze(model, StageArgs())
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (report.trained, report.trained + report.frozen) == (trained, total)
    by_name = {part.name: part for part in report.parts}
    assert by_name["vision tower"].trained == by_name["language model"].trained == 0
    assert by_name["image connector"].frozen == by_name["memory connector"].frozen == 0
    assert f"language model: 0 trained, {by_name['language model'].frozen:,} frozen" in caplog.text


def test_trained_parts_become_float32_and_frozen_ones_stay(tiny_vision_dir, tiny_llm_dir) -> None:
    model = build_model(tiny_vision_dir, tiny_llm_dir, dtype=torch.bfloat16, template="plain")[0]
    freeze(model, StageArgs(language="full"))
    dtypes = {part.name: part.dtype for part in account(model).parts}
    assert dtypes == {
        "vision tower": "bfloat16",
        "image connector": "float32",
        "language model": "float32",
    }
