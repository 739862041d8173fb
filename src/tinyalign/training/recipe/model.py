"""Settings of a recipe's model: which parts it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tinyalign.errors import ConfigError
from tinyalign.model.forms import IMAGE_CONNECTORS
from tinyalign.vocabulary import CrossEntropy


@dataclass
class ModelArgs:
    """Which parts the model is made of."""

    vision: str = "efficientnet-lite2"
    """Vision tower: a hub id, a folder, or a packaged name such as "efficientnet-lite2"."""
    language: str = "smollm2-135m"
    """Language model: a hub id, a folder, a .gguf file, or the packaged "smollm2-135m"."""
    template: str | None = None
    """Chat template by name; by default the tokenizer's own, or one that renders the same."""
    connector: str = "mlp2x_gelu"
    """Form of the image connector: linear, mlp2x_gelu, resampler, pixel_shuffle, or one that
    another package registers."""
    connector_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that form, as {name: value}. mlp2x_gelu: hidden_size. resampler: num_queries,
    num_heads, hidden_size. pixel_shuffle: factor. linear: none."""
    vision_feature_layer: int | list[int] = -1
    """Layer of the tower that features are read from; -1 is its last output."""
    vision_feature_select: Literal["patch", "full"] = "patch"
    """"patch" drops class token and registers; "full" keeps them."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of what is frozen, and of the arithmetic of an LLM that is trained. "float16",
    with loss scaling, is for GPUs without bfloat16."""
    attn_implementation: str = "auto"
    """Attention of the LLM. "auto" is "eager" on a CPU, where it trains a third faster in
    bfloat16 than the library's default, and the library's default elsewhere. Others are "sdpa",
    "flex_attention" and "flash_attention_2" (GPU, package flash-attn)."""
    cross_entropy: CrossEntropy = "full"
    """How the LLM's head and the loss are computed. "chunked" goes through the supervised tokens
    part by part and never holds all their logits; "liger" does so in one GPU kernel."""
    compile: Literal["off", "on", "auto"] = "off"
    """Compile each layer of the LLM, and the loss: 1.5 x faster on a CPU after 20 to 30 s. "auto"
    does so when a stage has 150 steps or more and the machine has the compiler that it takes."""

    def __post_init__(self) -> None:
        for name in ("vision", "language"):
            if not getattr(self, name):
                raise ConfigError(f"model.{name} is empty; name a hub id, a folder or a package")
        IMAGE_CONNECTORS.check(self.connector)
