"""Cached features equal live ones; nothing is computed twice; nothing bad stops a long run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from tinyalign.data.images import load_image, pixel_hash
from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import ConfigError, DataError
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.features import FeatureCache, LiveFeatures
from tinyalign.training.caches.pixels import PixelCache


@pytest.fixture
def encoder(tiny_vision_dir: Path) -> VisionEncoder:
    return VisionEncoder.load(tiny_vision_dir)


@pytest.fixture
def samples(pairs: Path):
    return open_dataset(pairs)


def counted(encoder: VisionEncoder) -> list[int]:
    """The number of images in each call of `encode` from now on."""
    calls: list[int] = []
    plain = encoder.encode
    encoder.encode = lambda images: (calls.append(len(images)), plain(images))[1]  # type: ignore[method-assign]
    return calls


def test_cached_features_are_the_live_ones_to_the_bit_in_float32(encoder, samples, tmp_path):
    cached = FeatureCache(tmp_path, encoder, "float32").cover(samples, batch_size=8)
    for start in (0, 8, 16):
        images = [load_image(samples[i].images[0]) for i in range(start, start + 8)]
        assert torch.equal(cached.batch(range(start, start + 8)), encoder.encode(images))


def test_in_bfloat16_they_are_the_live_ones_rounded(encoder, samples, tmp_path):
    exact = FeatureCache(tmp_path, encoder, "float32").cover(samples)
    rounded = FeatureCache(tmp_path, encoder, "bfloat16").cover(samples)
    assert torch.equal(rounded[5], exact[5].to(torch.bfloat16).float())
    assert rounded.images(5).dtype == torch.bfloat16
    assert rounded.images(5).shape == (1, *encoder.dims)


def test_a_second_data_set_with_the_same_images_computes_nothing(encoder, samples, tmp_path):
    FeatureCache(tmp_path, encoder).cover(samples)
    calls = counted(encoder)
    again = FeatureCache(tmp_path, encoder).cover([*samples[3:9], samples[3]])
    assert calls == []
    assert again.rows[0] == again.rows[-1]


def test_the_same_picture_from_another_file_is_not_computed_again(encoder, samples, tmp_path):
    cache = FeatureCache(tmp_path / "cache", encoder)
    first = cache.cover(samples[:1])
    copy = tmp_path / "copy.bmp"
    load_image(samples[0].images[0]).save(copy)
    calls = counted(encoder)
    again = cache.cover([Sample("copy", (ImageRef(path=str(copy)),), ())])
    assert calls == []
    assert again.rows == first.rows


@pytest.mark.parametrize("source", [FeatureCache, LiveFeatures, PixelCache])
def test_images_decoded_in_workers_give_the_same_bytes(source, encoder, samples, tmp_path):
    gone = Sample("gone", (ImageRef(path=str(tmp_path / "gone.png")),), ())
    several = Sample("several", samples[5].images + samples[1].images, ())
    mixed = [*samples[:10], gone, several, samples[0]]
    parts = [
        source(tmp_path / str(workers), encoder).cover(mixed, batch_size=4, workers=workers)
        for workers in (0, 2)
    ]
    for part in parts:
        assert part.rows == parts[0].rows
        assert part.skipped == parts[0].skipped
        assert part.image_hashes() == parts[0].image_hashes()
        assert [name for name, _ in part.skipped] == ["gone"]
    files = [sorted(part.source.folder.glob("*.bin")) for part in parts]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_stops_at_an_unreadable_image_with_any_number_of_workers(
    workers, encoder, samples, tmp_path
):
    gone = Sample("gone", (ImageRef(path=str(tmp_path / "gone.png")),), ())
    with pytest.raises(DataError, match=r"gone\.png: expected a file"):
        FeatureCache(tmp_path, encoder).cover([samples[0], gone], strict=True, workers=workers)


def test_workers_decode_and_this_process_does_not(encoder, samples, tmp_path, monkeypatch):
    here, places = os.getpid(), tmp_path / "places"

    def noting(ref):
        with open(places, "a") as file:
            file.write(f"{os.getpid()}\n")
        return load_image(ref)

    monkeypatch.setattr("tinyalign.data.decoding.load_image", noting)
    FeatureCache(tmp_path, encoder).cover(samples, batch_size=8, workers=2)
    decoded_in = [int(line) for line in places.read_text().split()]
    assert len(decoded_in) == len(samples)
    assert here not in decoded_in


def test_an_interrupted_cache_goes_on(encoder, samples, tmp_path, monkeypatch):
    calls: list[int] = []
    plain, _ = encoder.encode, encoder.dims  # the sizes are asked for once

    def failing(images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(images)

    monkeypatch.setattr(encoder, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, encoder, "float32").cover(samples, batch_size=8)
    with open(FeatureCache(tmp_path, encoder, "float32").folder / "features.bin", "ab") as file:
        file.write(b"half a row")
    cached = FeatureCache(tmp_path, encoder, "float32").cover(samples, batch_size=8)
    assert calls == [8, 8, 8, 8]  # two done, one lost, one redone
    monkeypatch.undo()
    live = encoder.encode([load_image(samples[i].images[0]) for i in range(16, 24)])
    assert torch.equal(cached.batch(range(16, 24)), live)


def test_bad_images_are_listed_not_fatal(encoder, samples, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(samples[0].images[0].name).read_bytes()[:90])
    turns = (Message("user", ""), Message("assistant", "a"))
    bad = [
        Sample("gone", (ImageRef(path=str(tmp_path / "gone.png")),), turns),
        Sample("broken", (ImageRef(path=str(broken)),), turns),
    ]
    cached = FeatureCache(tmp_path, encoder).cover([samples[0], *bad, samples[1]])
    assert cached.usable() == [0, 3]
    assert [name for name, _ in cached.skipped] == ["gone", "broken"]
    assert "gone.png" in cached.skipped[0][1]
    with pytest.raises(IndexError):
        cached[1]
    with pytest.raises(DataError, match=r"gone\.png"):
        FeatureCache(tmp_path, encoder).cover(bad, strict=True)


def test_image_hashes_are_those_of_the_decoded_pictures(encoder, samples, tmp_path):
    text_only = Sample("text", (), (Message("user", "hi"), Message("assistant", "ho")))
    cached = FeatureCache(tmp_path, encoder).cover([samples[2], text_only])
    assert cached.image_hashes() == [pixel_hash(load_image(samples[2].images[0])), ""]


def test_several_images_of_one_sample(encoder, samples, tmp_path):
    both = Sample("both", samples[0].images + samples[1].images, ())
    cached = FeatureCache(tmp_path, encoder, "float32").cover([both])
    assert cached.images(0).shape == (2, *encoder.dims)
    # The last image speaks for the sample, as in generate() and in a bank.
    assert torch.equal(cached[0], cached.images(0)[1])
    assert torch.equal(cached.batch([0])[0], cached.images(0)[1])
    assert cached.image_hashes() == [pixel_hash(load_image(samples[1].images[0]))]


def test_live_features_are_the_cached_ones_and_leave_no_file(encoder, samples, tmp_path):
    kept = FeatureCache(tmp_path / "kept", encoder, "float32").cover(samples, batch_size=4)
    live = LiveFeatures(tmp_path / "live", encoder).cover(samples)
    torch.testing.assert_close(live.batch([3, 1, 7, 2]), kept.batch([3, 1, 7, 2]))
    assert live.image_hashes() == kept.image_hashes()
    assert not list((tmp_path / "live").rglob("features.bin"))


def test_features_travel_to_workers_without_their_map(encoder, samples, tmp_path):
    cached = FeatureCache(tmp_path, encoder).cover(samples)
    cached[0]
    encoder.tower = encoder.processor = None  # not what this is about
    assert len(pickle.dumps(cached)) < 20_000
    assert torch.equal(pickle.loads(pickle.dumps(cached)).stored([0]), cached.stored([0]))


def test_a_damaged_index_says_what_to_remove(encoder, samples, tmp_path):
    cache = FeatureCache(tmp_path, encoder)
    cache.cover(samples[:2])
    cache.index.path.write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="remove the folder"):
        cache.cover(samples[:2])


def test_an_unknown_precision_is_refused(encoder, tmp_path):
    with pytest.raises(ConfigError, match="float8"):
        FeatureCache(tmp_path, encoder, "float8")


def test_data_in_memory_is_known_by_its_bytes(encoder, tmp_path):
    path = tmp_path / "p.png"
    Image.new("RGB", (20, 20), "red").save(path)
    sample = Sample("a", (ImageRef(path="p.png", data=path.read_bytes()),), ())
    cache = FeatureCache(tmp_path, encoder)
    assert cache.cover([sample]).rows == cache.cover([sample, sample]).rows[:1] == [[0]]
