"""A tiny TinyAlign model with a bank, and samples to judge it on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tinyalign.data.images import load_image
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.memory.attach import attach_memory
from tinyalign.memory.building.builder import build_bank
from tinyalign.memory.keys.image_text import ImageTextKeyFunction
from tinyalign.memory.keys.text import train_tokenizer
from tinyalign.memory.perceiver import Perceiver
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.build import build_model

from ..memory.conftest import make_perceiver

COLOURS = ["red", "green", "blue", "grey", "yellow"]


class World(NamedTuple):
    """A model with everything it needs."""

    model: Any
    processor: Any
    retriever: Retriever


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def make_sample(number: int, picture: int | None = None, name: str = "s") -> Sample:
    colour = COLOURS[number % len(COLOURS)]
    question = "What colour?" if number % 2 else "What colour is the shape, in one word?"
    return Sample(
        id=f"{name}{number}",
        images=(ImageRef(data=png(number if picture is None else picture)),),
        messages=(Message("user", question), Message("assistant", colour)),
        references=(colour,),
    )


def make_captions(images: int, each: int = 2) -> list[Sample]:
    """`each` samples an image, one for each of its captions, without an instruction."""
    samples = []
    for number in range(images):
        captions = tuple(f"a {COLOURS[number % 5]} shape number {i}" for i in range(each))
        for i, caption in enumerate(captions):
            samples.append(
                Sample(
                    id=f"c{number}#{i}",
                    images=(ImageRef(data=png(100 + number)),),
                    messages=(Message("user", ""), Message("assistant", caption)),
                    references=captions,
                )
            )
    return samples


def make_compressor(samples: list[Sample], vision: VisionEncoder) -> Perceiver:
    network = make_perceiver()
    tokenizer = train_tokenizer((sample.text for sample in samples), vocab_size=300)
    features = vision.encode([load_image(sample.images[0]) for sample in samples])
    table = network.token_embedding.weight.detach()
    return Perceiver(network, tokenizer, ImageTextKeyFunction.fit([features], text_table=table))


def make_model(vision_dir: Path, llm_dir: Path, perceiver: Perceiver, **settings: Any):
    torch.manual_seed(0)
    model, processor = build_model(
        vision_dir,
        llm_dir,
        perceiver_config=perceiver.network.config.to_dict(),
        memory_latents_used=8,
        perceiver_hash=perceiver.hash,
        **settings,
    )
    with torch.no_grad():  # louder than at the start of training, so that inputs show in outputs
        for name, parameter in model.named_parameters():
            if "memory_connector" in name or "multi_modal_projector" in name:
                parameter.mul_(3)
            if "language_model.layers" in name and parameter.ndim == 2:
                parameter.mul_(20)
    return model, processor


@pytest.fixture(scope="session")
def perceiver(tiny_vision_dir: Path) -> Perceiver:
    bank_samples = [make_sample(i, name="bank") for i in range(12)]
    return make_compressor(bank_samples, VisionEncoder.load(tiny_vision_dir))


@pytest.fixture(scope="session")
def world(
    tiny_vision_dir: Path,
    tiny_llm_dir: Path,
    perceiver: Perceiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """A model with k = 2 and a bank of pictures 0-11 attached."""
    model, processor = make_model(tiny_vision_dir, tiny_llm_dir, perceiver, k=2, template="chatml")
    out = tmp_path_factory.mktemp("bank") / "bank"
    vision = VisionEncoder.from_model(model, processor)
    bank_samples = [make_sample(i, name="bank") for i in range(12)]
    build_bank(bank_samples, vision, perceiver, out)
    return World(model, processor, attach_memory(model, processor, out))


@pytest.fixture(scope="session")
def questions() -> list[Sample]:
    """Nine questions; the pictures of the first three are also in the bank, under other ids."""
    return [make_sample(i, picture=i if i < 3 else 50 + i // 2) for i in range(9)]
