"""Image connectors: shapes, start scale, and errors that say what to change."""

import pytest
import torch

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.configuration import TinyAlignConfig
from tinyalign.model.connectors.image import build_connector, match_scale, rms
from tinyalign.model.forms import IMAGE_CONNECTORS as CONNECTORS

VISION = {"model_type": "siglip_vision_model", "hidden_size": 48, "num_hidden_layers": 1}
TEXT = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def connector(**settings):
    torch.manual_seed(0)
    config = TinyAlignConfig(vision_config=VISION, text_config=TEXT, token_rms=0.1, **settings)
    made = build_connector(config)
    made.reset_parameters()
    return made


@pytest.mark.parametrize("name", CONNECTORS)
def test_tokens_have_the_shape_and_the_size_of_text(name):
    made = connector(connector=name)
    features = torch.randn(3, 36, 48)
    tokens = made(features)
    assert tokens.shape == (3, made.n_tokens(36), 32)
    assert 0.03 < rms(tokens) < 0.3
    match_scale(made, 50 * features, 0.1)
    assert rms(made(50 * features)) == pytest.approx(0.1, rel=1e-3)


def test_counts_of_tokens():
    counts = {"linear": 36, "mlp2x_gelu": 36, "resampler": 64, "pixel_shuffle": 9}
    assert {name: connector(connector=name).n_tokens(36) for name in CONNECTORS} == counts
    few = connector(connector="resampler", connector_args={"num_queries": 5})
    assert few.n_tokens(36) == 5


def test_pixel_shuffle_keeps_neighbours_together():
    made = connector(connector="pixel_shuffle")
    features = torch.zeros(1, 36, 48)
    base = made(features)
    features[0, 6 + 3] = 1  # row 1, column 3 of a 6 x 6 grid: block row 0, block column 1
    moved = (made(features) - base).abs().sum(-1).nonzero()[:, 1].tolist()
    assert moved == [1]
    with pytest.raises(ModelError, match="25 features"):
        made(torch.zeros(1, 25, 48))


def test_unknown_names_and_arguments_are_explained():
    with pytest.raises(ConfigError, match="mlp2x_gelu"):
        connector(connector="mlp3x")
    with pytest.raises(ConfigError, match="connector_args"):
        connector(connector="linear", connector_args={"factor": 2})
    with pytest.raises(ConfigError, match="heads"):
        connector(connector="resampler", connector_args={"num_heads": 5})
