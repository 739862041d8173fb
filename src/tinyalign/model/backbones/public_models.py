"""Sizes of public models, so that a recipe can be estimated before anything is downloaded.

Figures from the `config.json` and `tokenizer.json` that each model is published with; only what
decides shapes is here. A config on the disk always goes before this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KnownLanguage:
    """A language model: config arguments by their names in transformers, and its vocabulary."""

    model_type: str
    arguments: dict[str, Any]
    tokenizer_length: int
    """Tokens that the tokenizer has, added ones included."""


def _decoder(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


LANGUAGES = {
    "smollm2-135m": KnownLanguage("llama", _decoder(576, 1536, 30, 9, 3, 49152, True), 49152),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": KnownLanguage(
        "llama", _decoder(2048, 5632, 22, 32, 4, 32000, False), 32000
    ),
    "Qwen/Qwen2-0.5B": KnownLanguage("qwen2", _decoder(896, 4864, 24, 14, 2, 151936, True), 151646),
    "Qwen/Qwen2.5-3B": KnownLanguage(
        "qwen2", _decoder(2048, 11008, 36, 16, 2, 151936, True), 151665
    ),
    "microsoft/phi-2": KnownLanguage("phi", _decoder(2560, 10240, 32, 32, 32, 51200, False), 50295),
}

# Hub id -> (model type, config arguments).
VISION: dict[str, tuple[str, dict[str, Any]]] = {
    "google/siglip-so400m-patch14-384": (
        "siglip_vision_model",
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
    ),
    "openai/clip-vit-large-patch14-336": (
        "clip_vision_model",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    ),
}
