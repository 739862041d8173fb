"""The memory connector, θ_RC of the paper ("RAG connector"): k values E_R -> tokens H_R.

A fusion form is one small module. To add one: write a class with

    __init__(config, **memory_fusion_args)
    reset_parameters()                        draws its weights (outputs of RMS config.token_rms)
    n_tokens(config) -> int                   static: tokens it gives
    forward(values, mask, scores) -> tokens   (B, k, L, w), (B, k) bool, (B, k) -> (B, T, d)

and register it by name (`model.forms.register_fusion`). Values of absent memories arrive as zeros,
so the biases of a form are what the LLM sees where there is no memory. A form with `skip` (a
`LatentSkip`) and `mlp` can be started in closed form by `MemoryConnector.start_linear_skip`, one
with `words` (a `WordSkip`) by `start_word_skip`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.connectors.image import MLPConnector
from tinyalign.model.forms import FUSIONS

if TYPE_CHECKING:
    from tinyalign.model.configuration import TinyAlignConfig


PROMPT_WIDTH = 5
"""A learned prompt token is as wide as so many latents: the paper's k."""


class LatentSkip(nn.Module):
    """A linear map of its own for each latent position: (..., n, w) -> (..., n, d)."""

    def __init__(self, n_latents: int, width: int, text_width: int, token_rms: float) -> None:
        super().__init__()
        self.token_rms = token_rms
        self.weight = nn.Parameter(torch.empty(n_latents, width, text_width))
        self.bias = nn.Parameter(torch.empty(n_latents, text_width))

    def reset_parameters(self) -> None:
        init.normal_(self.weight, mean=0.0, std=self.token_rms / self.weight.shape[1] ** 0.5)
        init.zeros_(self.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """(..., n, w) -> (..., n, d)"""
        return torch.einsum("...nw,nwd->...nd", latents, self.weight) + self.bias


class WordSkip(nn.Module):
    """What text latents say, in the LLM's own embeddings: (B, k, n, w) -> (B, k, n, d).

    The Perceiver's read-out names a word for each text latent; its distribution over the
    Perceiver's words is applied to a table of the LLM's embeddings of these words. Nothing of it
    is trained, so a word that no training sample had is read as well as one that all had. Latents
    of the image, and absent memories, give zeros.
    """

    readout: Tensor
    bias: Tensor
    table: Tensor

    def __init__(self, config: TinyAlignConfig) -> None:
        super().__init__()
        perceiver: Any = config.perceiver_config
        self.n_text_latents = perceiver.n_text_latents
        words, width = perceiver.vocab_size, config.memory_shape[1]
        self.register_buffer("readout", torch.zeros(words, width))
        self.register_buffer("bias", torch.zeros(words))
        self.register_buffer("table", torch.zeros(words, config.text_width))

    def reset_parameters(self) -> None:
        for tensor in (self.readout, self.bias, self.table):
            init.zeros_(tensor)

    def start(self, readout: Tensor, bias: Tensor, table: Tensor) -> None:
        """readout (V, w), bias (V,): of the Perceiver; table (V, d): the LLM's embeddings."""
        like = self.table
        self.readout, self.bias, self.table = (
            tensor.detach().to(like.device, like.dtype, copy=True)
            for tensor in (readout, bias, table)
        )

    def forward(self, latents: Tensor, mask: Tensor) -> Tensor:
        """latents (B, k, n, w), mask (B, k) -> (B, k, n, d)"""
        saying = latents[:, :, : self.n_text_latents]
        words = nn.functional.linear(saying, self.readout, self.bias).softmax(dim=-1)  # (B,k,n',V)
        tokens = (words @ self.table) * mask[:, :, None, None]
        return nn.functional.pad(tokens, (0, 0, 0, latents.shape[2] - saying.shape[2]))


def _memory_mlp(config: TinyAlignConfig, width: int, hidden: int | None = None) -> MLPConnector:
    hidden = hidden or config.memory_hidden_size
    return MLPConnector(width, config.text_width, config.token_rms, hidden)


def _skip(config: TinyAlignConfig, n_latents: int) -> LatentSkip | None:
    if not config.memory_linear_skip:
        return None
    width = config.memory_shape[1]
    return LatentSkip(n_latents, width, config.text_width, config.token_rms)


def _words(config: TinyAlignConfig) -> WordSkip | None:
    return WordSkip(config) if config.memory_word_skip else None


def _reset(mlp: MLPConnector, *skips: LatentSkip | WordSkip | None) -> None:
    mlp.reset_parameters()
    for skip in skips:
        if skip is not None:
            # The skip speaks first; the MLP learns what it leaves over.
            skip.reset_parameters()
            init.zeros_(mlp.output.weight)


class WidthFusion(nn.Module):
    """The paper's form: latent j of all k memories side by side, through one MLP.

    32 tokens whatever k is. With a skip, token j also gets the mean over the present memories of
    the skip of their latent j; likewise with words.
    """

    def __init__(self, config: TinyAlignConfig) -> None:
        super().__init__()
        n_latents, width = config.memory_shape
        self.mlp = _memory_mlp(config, width * config.memory_k)
        self.skip = _skip(config, n_latents)
        self.words = _words(config)

    @staticmethod
    def n_tokens(config: TinyAlignConfig) -> int:
        return config.memory_shape[0]

    def reset_parameters(self) -> None:
        _reset(self.mlp, self.skip, self.words)

    def forward(self, values: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        """(B, k, L, w) -> (B, L, d)"""
        batch, k, n_latents, width = values.shape
        # (B, k, L, w) -> (B, L, k, w) -> (B, L, k*w)
        tokens = self.mlp(values.transpose(1, 2).reshape(batch, n_latents, k * width))
        present = mask.sum(dim=1).clamp(min=1).to(values.dtype)[:, None, None]  # (B, 1, 1)
        if self.skip is not None:
            tokens = tokens + self.skip(values.sum(dim=1) / present)
        if self.words is not None:
            tokens = tokens + self.words(values, mask).sum(dim=1) / present
        return tokens


class SequenceFusion(nn.Module):
    """The first n latents of each memory, one memory after the other, through a shared MLP.

    With `prompt_tokens` that many learned tokens, the same for every input, stand before them, or
    behind them with `prompt_last`, where they can read the memories for the answer that follows: a
    frozen LLM gains from a soft prompt whatever is retrieved, and memories add to it. They come
    from a learned table through an MLP of their own, as the soft-prompt control does; its hidden
    width is `prompt_hidden_size`, by default that of the memories' MLP. With `nearest_last` the
    most similar memory stands last among them, nearest to the answer, instead of first.
    """

    def __init__(
        self,
        config: TinyAlignConfig,
        prompt_tokens: int = 0,
        prompt_hidden_size: int | None = None,
        prompt_last: bool = False,
        nearest_last: bool = False,
    ) -> None:
        super().__init__()
        if prompt_tokens < 0:
            raise ConfigError(f"prompt_tokens must be 0 or more, found {prompt_tokens}")
        self.n_latents = config.memory_latents_used
        self.prompt_last, self.nearest_last = prompt_last, nearest_last
        self.mlp = _memory_mlp(config, config.memory_shape[1])
        self.skip = _skip(config, self.n_latents)
        self.words = _words(config)
        self.prompt: nn.Parameter | None = None
        if prompt_tokens:
            width = config.memory_shape[1] * PROMPT_WIDTH
            self.prompt = nn.Parameter(torch.empty(prompt_tokens, width))
            self.prompt_mlp = _memory_mlp(config, width, prompt_hidden_size)

    @staticmethod
    def n_tokens(config: TinyAlignConfig) -> int:
        prompt = (config.memory_fusion_args or {}).get("prompt_tokens", 0)
        return prompt + config.memory_k * config.memory_latents_used

    def reset_parameters(self) -> None:
        _reset(self.mlp, self.skip, self.words)
        if self.prompt is not None:
            init.normal_(self.prompt, mean=0.0, std=1.0)
            self.prompt_mlp.reset_parameters()

    def forward(self, values: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        """(B, k, L, w) -> (B, p + k*n, d)"""
        used = values[:, :, : self.n_latents]  # (B, k, n, w)
        tokens = self.mlp(used)
        if self.skip is not None:
            tokens = tokens + self.skip(used)
        if self.words is not None:
            tokens = tokens + self.words(used, mask)
        if self.nearest_last:
            tokens = tokens.flip(1)
        tokens = tokens.flatten(1, 2)  # (B, k, n, d) -> (B, k*n, d)
        if self.prompt is None:
            return tokens
        prompt = self.prompt_mlp(self.prompt).expand(len(tokens), -1, -1)  # (B, p, d)
        return torch.cat([tokens, prompt] if self.prompt_last else [prompt, tokens], dim=1)


def _check_args(config: TinyAlignConfig) -> None:
    """ConfigError for arguments that the fusion form does not have."""
    parameters = inspect.signature(FUSIONS[config.memory_fusion]).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    known = [name for name in parameters if name != "config"]
    unknown = [name for name in config.memory_fusion_args or {} if name not in known]
    if unknown:
        raise ConfigError(
            f"memory.fusion.args (memory_fusion_args) holds {', '.join(map(repr, unknown))}, "
            f"which fusion {config.memory_fusion!r} does not know; it knows "
            f"{', '.join(map(repr, known)) or 'none'}. `--memory.fusion.args {{}}` clears them"
        )


class MemoryConnector(nn.Module):
    """θ_RC: memory values (B, k, L, w) -> H_R (B, n_memory_tokens, d).

    With memory_source "soft_prompt" a learned table of k values takes the place of what was
    retrieved: the control with the same tokens and no fewer parameters.
    """

    def __init__(self, config: TinyAlignConfig) -> None:
        super().__init__()
        self.k = config.memory_k
        self.shape = config.memory_shape
        _check_args(config)
        try:
            self.fusion = FUSIONS[config.memory_fusion](config, **(config.memory_fusion_args or {}))
        except TypeError as error:
            raise ConfigError(
                f"memory_fusion_args {config.memory_fusion_args} do not fit "
                f"{config.memory_fusion!r}: {error}"
            ) from error
        self.table: nn.Parameter | None = None
        if config.memory_source == "soft_prompt":
            self.table = nn.Parameter(torch.empty(1, self.k, *self.shape))

    def reset_parameters(self) -> None:
        """Draw all weights. The soft prompt's values start as large as real latents: unit RMS."""
        self.fusion.reset_parameters()
        if self.table is not None:
            init.normal_(self.table, mean=0.0, std=1.0)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(
        self,
        values: Tensor | None,
        mask: Tensor | None = None,
        scores: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """H_R (B, n_memory_tokens, d) of memory_values (B, k', L, w) with k' <= k.

        mask (B, k') is False where a memory is absent, scores (B, k') are similarities; missing
        memories up to k count as absent. A soft prompt needs only `batch_size`.
        Raises ModelError for values of another shape.
        """
        if self.table is not None:
            if batch_size is None:
                batch_size = 1 if values is None else values.shape[0]
            values, mask, scores = self.table.expand(batch_size, -1, -1, -1), None, None
        if values is None:
            raise ModelError("This model reads memories: pass memory_values (B, k, 32, 96).")
        self._check(values)
        values, mask, scores = self._fill(values.to(self.dtype), mask, scores)
        return self.fusion(values, mask, scores)

    def absent(self, batch_size: int) -> Tensor:
        """H_R (B, n_memory_tokens, d) where no memory is there: what drop-out shows in training."""
        parameter = next(self.parameters())
        values = parameter.new_zeros(batch_size, self.k, *self.shape)
        return self(values, values.new_zeros(batch_size, self.k, dtype=torch.bool))

    def start_linear_skip(self, weight: Tensor, bias: Tensor) -> None:
        """Start the skip at a closed-form solution: weight (n, w, d), bias (n, d).

        The MLP's last layer is set to zero, so the first output is exactly the closed form. More
        positions than the skip has are allowed and left out; fewer leave the others as drawn.
        Raises ModelError when the form has no skip or the shapes do not fit.
        """
        skip = getattr(self.fusion, "skip", None)
        if skip is None:
            raise ModelError(
                "This memory connector has no linear skip to start; set memory_linear_skip: true."
            )
        n, width, text_width = skip.weight.shape
        if weight.shape[1:] != (width, text_width) or bias.shape != (len(weight), text_width):
            raise ModelError(
                f"The closed form must have weight (n, {width}, {text_width}) and bias "
                f"(n, {text_width}), found {tuple(weight.shape)} and {tuple(bias.shape)}."
            )
        given = min(n, weight.shape[0])
        with torch.no_grad():
            skip.weight[:given].copy_(weight[:given])
            skip.bias[:given].copy_(bias[:given])
            self.fusion.mlp.output.weight.zero_()
            self.fusion.mlp.output.bias.zero_()

    def start_word_skip(self, readout: Tensor, bias: Tensor, table: Tensor) -> None:
        """Give the word skip the Perceiver's read-out (V, w), (V,) and its words (V, d) as the LLM
        embeds them. Raises ModelError when the form has no word skip or the shapes do not fit."""
        words = getattr(self.fusion, "words", None)
        if words is None:
            raise ModelError(
                "This memory connector has no word skip to start; set memory_word_skip: true."
            )
        width, text_width = words.readout.shape[1], words.table.shape[1]
        v = len(bias)
        if readout.shape != (v, width) or table.shape != (v, text_width):
            raise ModelError(
                f"The word skip must have a read-out (V, {width}) and a table (V, {text_width}), "
                f"found {tuple(readout.shape)} and {tuple(table.shape)}, and V = {v}."
            )
        words.start(readout, bias, table)

    def _check(self, values: Tensor) -> None:
        if values.ndim != 4 or values.shape[1] > self.k or tuple(values.shape[2:]) != self.shape:
            raise ModelError(
                f"memory_values must be (batch, at most {self.k}, {self.shape[0]}, "
                f"{self.shape[1]}), found {tuple(values.shape)}; the bank or k does not belong to "
                "this model."
            )

    def _fill(
        self, values: Tensor, mask: Tensor | None, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Zero what is masked and pad to k memories; scores of absent memories are zero."""
        batch, found = values.shape[:2]
        if mask is None:
            mask = torch.ones(batch, found, dtype=torch.bool, device=values.device)
        mask = mask.to(values.device, torch.bool)
        if scores is None:
            scores = values.new_zeros(batch, found)
        scores = scores.to(values.device, values.dtype).masked_fill(~mask, 0.0)
        values = values.masked_fill(~mask[:, :, None, None], 0.0)
        if missing := self.k - found:
            pad = nn.functional.pad
            values = pad(values, (0, 0, 0, 0, 0, missing))
            mask, scores = pad(mask, (0, missing)), pad(scores, (0, missing))
        return values, mask, scores
