"""A tiny memory room: made pictures with instructions, a random encoder and Perceiver, a bank."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.memory.building.builder import build_bank
from tinyalign.memory.keys.image_text import ImageTextKeyFunction
from tinyalign.memory.keys.text import train_tokenizer
from tinyalign.memory.perceiver import Perceiver
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.perceiver import PerceiverNetwork, PerceiverNetworkConfig

COLOURS = ["red", "green", "blue", "grey", "yellow", "black", "white"]


def png(seed: int) -> bytes:
    """A small picture of its own for every seed, as PNG bytes."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def make_sample(number: int, picture: int | None = None) -> Sample:
    """Sample `number`, showing picture `number` unless told otherwise."""
    colour = COLOURS[number % len(COLOURS)]
    return Sample(
        id=f"s{number}",
        images=(ImageRef(data=png(number if picture is None else picture)),),
        messages=(
            Message("user", f"What colour is shape {number % 3}?"),
            Message("assistant", f"It is {colour} number {number}"),
        ),
        source="made",
    )


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Twelve samples; s9, s10 and s11 show the same picture as s0, s1 and s2."""
    return [make_sample(i, i % 9) for i in range(12)]


@pytest.fixture(scope="session")
def vision(tiny_vision_dir: Path) -> VisionEncoder:
    return VisionEncoder.load(tiny_vision_dir)


def make_perceiver(seed: int = 0) -> PerceiverNetwork:
    """A random Perceiver with 8 latents of width 8."""
    torch.manual_seed(seed)
    config = PerceiverNetworkConfig(
        num_latents=8,
        d_latents=8,
        d_model=16,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        qk_channels=8,
        v_channels=8,
        feature_dim=32,
        max_image_tokens=16,
        n_text_latents=6,
        vocab_size=300,
        max_text_tokens=32,
    )
    return PerceiverNetwork(config).eval()


@pytest.fixture(scope="session")
def perceiver(samples: list[Sample], vision: VisionEncoder) -> Perceiver:
    from tinyalign.data.images import load_image

    network = make_perceiver()
    tokenizer = train_tokenizer((sample.text for sample in samples), vocab_size=300)
    features = vision.encode([load_image(sample.images[0]) for sample in samples])
    table = network.token_embedding.weight.detach()
    key_function = ImageTextKeyFunction.fit([features], text_table=table, alpha=0.6)
    return Perceiver(network, tokenizer, key_function)


@pytest.fixture(scope="session")
def bank(samples, vision, perceiver, tmp_path_factory: pytest.TempPathFactory):
    """A committed bank of the twelve samples. Read only: copy the folder to damage it."""
    out = tmp_path_factory.mktemp("bank") / "bank"
    return build_bank(samples, vision, perceiver, out, batch_size=4, vision_name="tiny").bank


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`locked(path)`: from now on the file cannot be opened; root could, whatever its mode."""
    real, paths = {"open": open, "os.open": os.open}, set[str]()

    def refusing(name: str):
        def opened(path, *arguments, **options):
            if isinstance(path, str | os.PathLike) and os.path.realpath(path) in paths:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real[name](path, *arguments, **options)

        return opened

    monkeypatch.setattr("builtins.open", refusing("open"))
    monkeypatch.setattr(os, "open", refusing("os.open"))
    return lambda path: paths.add(os.path.realpath(path))


@pytest.fixture
def no_checkpoint_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint after every batch, so that small builds have several parts."""
    monkeypatch.setattr("tinyalign.memory.building.builder.CHECKPOINT_EVERY", 1)


@pytest.fixture(scope="session")
def made():
    """benchmarks/kill_bank.py: banks whose keys and values follow from their texts."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_bank.py"
    if not path.is_file():
        pytest.skip("no benchmarks/kill_bank.py in this checkout")
    spec = importlib.util.spec_from_file_location("kill_bank", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_bank"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module
