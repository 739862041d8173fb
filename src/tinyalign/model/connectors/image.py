"""Image connectors: vision features X_V (B, n, D) -> image tokens H_V (B, m, d) for the LLM.

A model keeps its image connector as `multi_modal_projector`, the name that it has in LLaVA and in
all of transformers that looks for one; the recipe calls its form `model.connector`. A new form is
registered by name (`model.forms`).

Every connector draws its own weights in `reset_parameters`, with outputs of root mean square
`token_rms` (that of the LLM's token embeddings) for inputs of unit size. Real inputs differ from
unit size; `match_scale` corrects for that once, from one example.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.forms import IMAGE_CONNECTORS

if TYPE_CHECKING:
    from tinyalign.model.configuration import TinyAlignConfig


class Connector(Protocol):
    """What `build_connector` returns: a module whose last linear layer is `output`."""

    output: nn.Linear

    def __call__(self, features: Tensor) -> Tensor: ...

    def n_tokens(self, n_features: int) -> int: ...


def draw_linear(layer: nn.Linear, output_rms: float = 1.0) -> None:
    """Gaussian weights that turn inputs of unit RMS into outputs of `output_rms`; zero bias."""
    init.normal_(layer.weight, mean=0.0, std=output_rms / math.sqrt(layer.in_features))
    if layer.bias is not None:
        init.zeros_(layer.bias)


def rms(values: Tensor) -> float:
    """Root mean square over all entries, in float32."""
    return values.detach().float().square().mean().sqrt().item()


@torch.no_grad()
def match_scale(connector: Any, features: Tensor, token_rms: float) -> float:
    """Scale the last layer so that `features` (B, n, D) come out with RMS `token_rms`.

    Returns the factor. An LLM's embeddings are small; a connector that starts ten times louder
    than the text spends its first hundred steps turning itself down.
    """
    found = rms(connector(features.to(connector.output.weight.dtype)))
    if not found > 0:
        return 1.0
    factor = token_rms / found
    connector.output.weight.mul_(factor)
    if connector.output.bias is not None:
        connector.output.bias.mul_(factor)
    return factor


class LinearConnector(nn.Module):
    """One linear layer, as in LLaVA-1."""

    def __init__(self, width: int, text_width: int, token_rms: float) -> None:
        super().__init__()
        self.token_rms = token_rms
        self.output = nn.Linear(width, text_width)

    def reset_parameters(self) -> None:
        draw_linear(self.output, self.token_rms)

    def n_tokens(self, n_features: int) -> int:
        return n_features

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, d)"""
        return self.output(features)


class MLPConnector(nn.Module):
    """Linear, GELU, linear: `mlp2x_gelu` of LLaVA-1.5 and of the paper."""

    def __init__(
        self, width: int, text_width: int, token_rms: float, hidden_size: int | None = None
    ) -> None:
        super().__init__()
        self.token_rms = token_rms
        self.hidden = nn.Linear(width, hidden_size or text_width)
        self.activation = nn.GELU()
        self.output = nn.Linear(hidden_size or text_width, text_width)

    def reset_parameters(self) -> None:
        draw_linear(self.hidden)
        draw_linear(self.output, self.token_rms)

    def n_tokens(self, n_features: int) -> int:
        return n_features

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, d)"""
        return self.output(self.activation(self.hidden(features)))


class Resampler(nn.Module):
    """`num_queries` learned queries read the features by cross-attention, then an MLP block."""

    def __init__(
        self,
        width: int,
        text_width: int,
        token_rms: float,
        num_queries: int = 64,
        num_heads: int = 8,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_size or text_width
        if hidden % num_heads:
            raise ConfigError(
                f"The resampler's hidden size {hidden} cannot be split among {num_heads} heads; "
                "set connector_args num_heads or hidden_size."
            )
        self.token_rms = token_rms
        self.queries = nn.Parameter(torch.empty(num_queries, hidden))
        self.input = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.attention = nn.MultiheadAttention(hidden, num_heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.mlp_in = nn.Linear(hidden, 4 * hidden)
        self.activation = nn.GELU()
        self.mlp_out = nn.Linear(4 * hidden, hidden)
        self.closing_norm = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, text_width)

    def reset_parameters(self) -> None:
        init.normal_(self.queries, mean=0.0, std=1.0)
        init.xavier_uniform_(self.attention.in_proj_weight)
        init.zeros_(self.attention.in_proj_bias)
        for layer in (self.input, self.attention.out_proj, self.mlp_in, self.mlp_out):
            draw_linear(layer)
        for norm in (self.norm, self.mlp_norm, self.closing_norm):
            init.ones_(norm.weight)
            init.zeros_(norm.bias)
        draw_linear(self.output, self.token_rms)

    def n_tokens(self, n_features: int) -> int:
        return self.queries.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, D) -> (B, num_queries, d)"""
        keys = self.norm(self.input(features))
        queries = self.queries.expand(features.shape[0], -1, -1)
        found, _ = self.attention(queries, keys, keys, need_weights=False)
        hidden = queries + found
        hidden = hidden + self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(hidden))))
        return self.output(self.closing_norm(hidden))


class PixelShuffleConnector(nn.Module):
    """Each `factor` x `factor` block of patches becomes one token, then one linear layer."""

    def __init__(self, width: int, text_width: int, token_rms: float, factor: int = 2) -> None:
        super().__init__()
        self.token_rms = token_rms
        self.factor = factor
        self.output = nn.Linear(width * factor**2, text_width)

    def reset_parameters(self) -> None:
        draw_linear(self.output, self.token_rms)

    def n_tokens(self, n_features: int) -> int:
        return (self._side(n_features) // self.factor) ** 2

    def _side(self, n_features: int) -> int:
        side = math.isqrt(n_features)
        if side * side != n_features or side % self.factor:
            raise ModelError(
                f"Pixel shuffle by {self.factor} needs a square grid of patches whose side is a "
                f"multiple of {self.factor}; found {n_features} features. Choose another factor "
                "in connector_args or another connector."
            )
        return side

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, D) -> (B, n / factor^2, d)"""
        side, f = self._side(features.shape[1]), self.factor
        batch, _, width = features.shape
        grid = features.view(batch, side // f, f, side // f, f, width)
        # (B, h, f, w, f, D) -> (B, h, w, f, f, D) -> (B, h*w, f*f*D)
        blocks = grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, (side // f) ** 2, f * f * width)
        return self.output(blocks)


def build_connector(config: TinyAlignConfig) -> Any:
    """The connector that `config.connector` names, with `config.connector_args`."""
    make = IMAGE_CONNECTORS[config.connector]
    try:
        return make(
            config.vision_width,
            config.text_width,
            config.token_rms,
            **(config.connector_args or {}),
        )
    except TypeError as error:
        raise ConfigError(
            f"connector_args {config.connector_args} do not fit {config.connector!r}: {error}"
        ) from error
