"""The Perceiver: shapes of the paper, both input modes, and no trace of padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.perceiver import PerceiverNetwork, PerceiverNetworkConfig

SMALL = {"num_self_attends_per_block": 2, "feature_dim": 16, "vocab_size": 50, "image_size": 32}


@pytest.fixture(scope="module")
def perceiver():
    torch.manual_seed(0)
    return PerceiverNetwork(PerceiverNetworkConfig(**SMALL)).eval()


def test_defaults_are_table_4_of_the_paper():
    config = PerceiverNetworkConfig()
    table = {"num_latents": 32, "d_latents": 96, "d_model": 128, "num_blocks": 1}
    table |= {"num_self_attends_per_block": 8, "qk_channels": 96, "v_channels": 96}
    table |= {"num_self_attention_heads": 8, "num_cross_attention_heads": 8, "image_size": 384}
    assert {name: getattr(config, name) for name in table} == table


def test_read_outs_see_their_own_latents(perceiver):
    latents = torch.randn(2, 32, 96)
    assert perceiver.text_logits(latents).shape == (2, 24, 50)
    assert perceiver.image_readout(latents).shape == (2, 16)
    changed = latents.clone()
    changed[:, 5] += 1
    differs = (perceiver.text_logits(changed) != perceiver.text_logits(latents)).any(-1)
    assert differs.nonzero()[:, 1].unique().tolist() == [5]  # latent j speaks for token j alone
    assert torch.equal(perceiver.image_readout(changed), perceiver.image_readout(latents))


def test_latents_have_unit_rms(perceiver):
    latents = perceiver(torch.randint(0, 50, (2, 9)), None, 100 * torch.randn(2, 4, 16))
    assert latents.shape == (2, 32, 96)
    torch.testing.assert_close(latents.square().mean(-1), torch.ones(2, 32), atol=0.02, rtol=0)


@settings(max_examples=6, deadline=None)
@given(length=st.integers(1, 12), padding=st.integers(1, 12), other=st.integers(0, 49))
def test_padding_and_batch_mates_never_change_latents(perceiver, length, padding, other):
    torch.manual_seed(length)
    ids, features = torch.randint(0, 50, (1, length)), torch.randn(1, 4, 16)
    alone = perceiver(ids, torch.ones_like(ids), features)
    padded = torch.nn.functional.pad(ids, (0, padding), value=other)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, padding))
    mates = torch.randint(0, 50, padded.shape)
    batch = perceiver(
        torch.cat([mates, padded]),
        torch.cat([torch.ones_like(mask), mask]),
        torch.cat([torch.randn(1, 4, 16), features]),
    )
    torch.testing.assert_close(batch[1:], alone, atol=2e-5, rtol=0)


def test_an_empty_text_is_an_image_alone(perceiver):
    features = torch.randn(2, 4, 16)
    ids = torch.zeros(2, 5, dtype=torch.long)
    masked = perceiver(ids, torch.zeros_like(ids), features)
    torch.testing.assert_close(masked, perceiver(image_features=features), atol=2e-5, rtol=0)
    none = perceiver(ids[:, :0], None, features)
    torch.testing.assert_close(none, masked, atol=2e-5, rtol=0)


def test_pixel_mode_reads_patches():
    torch.manual_seed(0)
    config = PerceiverNetworkConfig(input_mode="pixels", **SMALL)
    perceiver = PerceiverNetwork(config).eval()
    ids, pixels = torch.randint(0, 50, (2, 3)), torch.randn(2, 3, 32, 32)
    latents = perceiver(ids, None, pixel_values=pixels)
    assert latents.shape == (2, 32, 96)
    pixels[0, :, 20, 20] += 5  # one pixel of the last patch of the first image
    moved = (perceiver(ids, None, pixel_values=pixels) - latents).abs().amax((1, 2))
    assert moved[0] > 1e-4
    assert moved[1] == 0
    with pytest.raises(ModelError, match="32 x 32"):
        perceiver(ids, None, pixel_values=torch.randn(2, 3, 48, 32))


def test_wrong_inputs_say_what_to_pass(perceiver):
    with pytest.raises(ModelError, match="image_features"):
        perceiver(pixel_values=torch.randn(1, 3, 32, 32))
    with pytest.raises(ModelError, match="neither"):
        perceiver()
    with pytest.raises(ModelError, match="300 tokens"):
        perceiver(torch.zeros(1, 300, dtype=torch.long))
    with pytest.raises(ConfigError, match="n_text_latents"):
        PerceiverNetworkConfig(n_text_latents=32)


def test_save_and_load_through_the_auto_classes(perceiver, tmp_path):
    perceiver.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is PerceiverNetworkConfig
    ids, features = torch.randint(0, 50, (2, 5)), torch.randn(2, 4, 16)
    assert torch.equal(loaded(ids, None, features), perceiver(ids, None, features))
