"""Cached pixels are the live ones to the bit, and no image is decoded twice."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from tinyalign.data.images import load_image
from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError
from tinyalign.model.backbones.efficientnet_lite import EfficientNetLiteConfig, image_processor
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.features import LiveFeatures
from tinyalign.training.caches.pixels import PixelCache, PixelCodec
from tinyalign.training.caches.row_file import RowFile
from tinyalign.training.metering.metrics_log import read_metrics
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.run import train
from tinyalign.training.run_folder import RunFolder
from tinyalign.training.stage_run import StageRun

PROCESSORS = {
    "siglip": lambda: SiglipImageProcessor(size={"height": 32, "width": 40}),
    "clip": lambda: CLIPImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ),
    "efficientnet": lambda: image_processor(EfficientNetLiteConfig(image_size=64)),
    "plain": lambda: SiglipImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
}


@pytest.fixture
def encoder(tiny_vision_dir: Path) -> VisionEncoder:
    return VisionEncoder.load(tiny_vision_dir)


@pytest.fixture
def samples(pairs: Path):
    return open_dataset(pairs)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    shapes = [(20, 90), (64, 64), (200, 130), (1, 1)]
    made = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    return [Image.fromarray(pixels) for pixels in made]


@pytest.mark.parametrize("name", PROCESSORS)
def test_bytes_give_the_processors_output_back_to_the_bit(name: str) -> None:
    processor = PROCESSORS[name]()
    codec = PixelCodec.found(processor)
    assert codec.dtype == np.uint8
    for picture in pictures():
        live = processor(images=[picture], return_tensors="pt")["pixel_values"][0]
        kept = codec.encode(picture)
        assert kept.dtype == np.uint8
        assert torch.equal(torch.from_numpy(codec.decode(kept)), live)


class Stubborn:
    """An image processor that normalises whatever it is told."""

    def __call__(self, images: list[Any], return_tensors: str, **switches: bool) -> dict[str, Any]:
        small = [np.asarray(image.resize((8, 8)), np.float32) / 255 for image in images]
        return {"pixel_values": np.stack(small).transpose(0, 3, 1, 2) - 0.3}


def test_a_processor_without_whole_pixels_is_kept_in_float32() -> None:
    codec = PixelCodec.found(Stubborn())
    assert codec.dtype == np.float32
    for picture in pictures():
        live = Stubborn()([picture], "np")["pixel_values"][0]
        assert np.array_equal(codec.decode(codec.encode(picture)), live)


def test_cached_pixels_and_their_features_are_the_live_ones(encoder, samples, tmp_path):
    cached = PixelCache(tmp_path / "kept", encoder).cover(samples)
    live = LiveFeatures(tmp_path / "live", encoder).cover(samples)
    for index in (0, 5, 11):
        expected = encoder.pixels([load_image(samples[index].images[0])])
        assert torch.equal(torch.stack(cached.pixels(index)), expected)
    assert torch.equal(cached.batch([3, 1, 7]), live.batch([3, 1, 7]))
    assert cached.image_hashes() == live.image_hashes()


def test_nothing_is_decoded_twice(encoder, samples, tmp_path, monkeypatch):
    PixelCache(tmp_path, encoder).cover(samples)
    again = PixelCache(tmp_path, encoder)
    monkeypatch.setattr("tinyalign.training.caches.features.load_image", None)
    assert again.cover([*samples[3:9], samples[3]]).rows == [[i] for i in (3, 4, 5, 6, 7, 8, 3)]


def test_an_interrupted_cache_goes_on(encoder, samples, tmp_path, monkeypatch):
    plain, calls = RowFile.write, []

    def failing(self: RowFile, first: int, rows: list[np.ndarray]) -> None:
        calls.append((first, len(rows)))
        plain(self, first, rows)
        if len(calls) == 2:
            raise KeyboardInterrupt  # the rows are there, the index does not know them

    monkeypatch.setattr(RowFile, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        PixelCache(tmp_path, encoder).cover(samples, batch_size=8)
    cached = PixelCache(tmp_path, encoder).cover(samples, batch_size=8)
    assert calls == [(0, 8), (8, 8), (8, 8), (16, 8)]
    expected = encoder.pixels([load_image(samples[20].images[0])])
    assert torch.equal(torch.stack(cached.pixels(20)), expected)


def test_other_settings_are_another_cache(encoder, tmp_path):
    first = PixelCache(tmp_path, encoder).folder
    for changed in ({"size": {"height": 40, "width": 40}}, {"image_mean": [0.1, 0.2, 0.3]}):
        processor = SiglipImageProcessor(**{"size": {"height": 32, "width": 32}, **changed})
        assert PixelCache(tmp_path, VisionEncoder(encoder.tower, processor)).folder != first


def test_bad_images_are_listed_not_fatal(encoder, samples, tmp_path):
    gone = Sample("gone", (ImageRef(path=str(tmp_path / "gone.png")),), ())
    cached = PixelCache(tmp_path, encoder).cover([samples[0], gone])
    assert cached.usable() == [0]
    with pytest.raises(IndexError):
        cached.pixels(1)
    with pytest.raises(DataError, match=r"gone\.png"):
        PixelCache(tmp_path, encoder).cover([gone], strict=True)


def test_sizes_that_differ_are_refused(tmp_path):
    rows = RowFile(tmp_path / "rows.bin", (3, 4), np.dtype(np.uint8))
    with pytest.raises(DataError, match=r"expected rows of shape \(3, 4\), found \(3, 5\)"):
        rows.write(0, [np.zeros((3, 5), np.uint8)])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot read ahead")
def test_rows_needed_next_are_asked_of_the_system(tmp_path, monkeypatch):
    rows = RowFile(tmp_path / "rows.bin", (3, 4), np.dtype(np.uint8))
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *where: asked.append(where))
    rows.will_need([0])  # no file yet
    rows.write(0, [np.zeros((3, 4), np.uint8)] * 3)
    rows.will_need([2, 0])
    assert asked == [(24, 12, os.POSIX_FADV_WILLNEED), (0, 12, os.POSIX_FADV_WILLNEED)]


def test_it_travels_to_workers_without_its_map(encoder, samples, tmp_path):
    cached = PixelCache(tmp_path, encoder).cover(samples)
    expected = cached.pixels(2)[0]
    encoder.tower = encoder.processor = cached.source.codec = None  # not what this is about
    assert len(pickle.dumps(cached)) < 20_000
    assert cached._map is not None
    assert pickle.loads(pickle.dumps(cached))._map is None
    assert expected.shape == (3, 32, 32)


# --------------------------------------------------------------------------------------- in a run


def losses(recipe: Recipe) -> list[float]:
    result = train(recipe)
    return [x["loss"] for x in read_metrics(result.folder / "metrics.jsonl") if "loss" in x]


@pytest.mark.slow
def test_a_trained_tower_learns_the_same_from_cached_pixels(recipe: Recipe, tmp_path: Path):
    stage = StageArgs(batch_size=8, vision="full", checkpoint_steps=None)
    base = replace(recipe, memory=replace(recipe.memory, k=0), pretrain=stage)
    runs = [
        replace(base, data=replace(base.data, cache=cache), output=str(tmp_path / cache))
        for cache in ("none", "pixels", "auto")
    ]
    live, cached, chosen = (losses(run) for run in runs)
    assert len(live) == 3
    assert cached == live == chosen


@pytest.mark.slow
def test_a_run_with_memory_learns_the_same_with_pixels_and_with_none(recipe, tmp_path):
    found = [
        losses(
            replace(recipe, data=replace(recipe.data, cache=cache), output=str(tmp_path / cache))
        )
        for cache in ("none", "pixels")
    ]
    assert found[0] == found[1]


def test_held_out_data_come_from_the_cache_too(recipe: Recipe) -> None:
    recipe = replace(recipe, data=replace(recipe.data, cache="pixels"))
    folder = RunFolder(recipe)
    folder.path.mkdir(parents=True)
    shop = StageRun(recipe, folder, "pretrain")
    held_out = shop.dataset(recipe.data.pretrain_eval, held_out=True)
    cached = held_out[2]["pixel_values"]
    live = shop.features.encoder.pixels([load_image(held_out.samples[2].images[0])])
    assert torch.equal(torch.stack(cached), live)
    assert held_out.tokens is not None


TOGETHER = """
import json, sys
from pathlib import Path
from tinyalign.data.readers import open_dataset
from tinyalign.hashing import hash_tensors
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.features import FeatureCache
from tinyalign.training.caches.pixels import PixelCache

kind, vision, data, out = sys.argv[1:]
encoder = VisionEncoder.load(vision)
source = PixelCache(Path(out), encoder) if kind == "pixels" else FeatureCache(out, encoder)
print("ready", flush=True)
sys.stdin.readline()
found = source.cover(open_dataset(data), batch_size=2)
print(json.dumps([hash_tensors({"x": found[i]}) for i in range(len(found))]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_two_processes_fill_one_cache_at_once(kind, tiny_vision_dir, pairs, tmp_path):
    words = [sys.executable, "-c", TOGETHER, kind]
    words += [str(each) for each in (tiny_vision_dir, pairs, tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(words, **pipes) for _ in range(2)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [json.loads(process.communicate(timeout=300)[0]) for process in running]
    assert results[0] == results[1]
    assert len(set(results[0])) == 24
    stored = next(tmp_path.rglob("pixels.bin" if kind == "pixels" else "features.bin"))
    row = 3 * 32 * 32 if kind == "pixels" else 16 * 32 * 2
    assert stored.stat().st_size == 24 * row
