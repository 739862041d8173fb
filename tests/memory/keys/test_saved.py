"""How a key function lies in a folder."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from tinyalign.memory.keys.saved import write_key


def test_settings_and_tensors_lie_side_by_side(tmp_path) -> None:
    settings = {"kind": "mine", "hash": "abc"}
    write_key(tmp_path / "a" / "key", {"map": torch.eye(2)}, settings)
    assert json.loads((tmp_path / "a" / "key" / "key.json").read_text()) == settings
    assert torch.equal(load_file(tmp_path / "a" / "key" / "key.safetensors")["map"], torch.eye(2))
