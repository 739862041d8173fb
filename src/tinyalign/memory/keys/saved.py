"""How a key function lies in a folder: key.json with its settings, key.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tinyalign.memory.bank.files import common_mode, write_atomically


def write_key(folder: str | Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write both files; the settings hold "kind" and "hash"."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "key.safetensors")
    common_mode(folder / "key.safetensors")
    write_atomically(folder / "key.json", json.dumps(settings, indent=2).encode())
