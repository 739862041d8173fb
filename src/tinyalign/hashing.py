"""Content hashes: what caches and banks are keyed by. SHA-256, cut to 16 hex digits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch

DIGITS = 16
RANGE_BLOCK = 1 << 22  # bytes of a range read at a time


def hash_bytes(data: bytes) -> str:
    """Hash of raw bytes."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def hash_json(value: Any) -> str:
    """Hash of any JSON-serialisable value, independent of key order."""
    return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode())


def hash_file(path: str | os.PathLike[str]) -> str:
    """Hash of a file's content, read in blocks of one MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:DIGITS]


def hash_range(path: str | os.PathLike[str], start: int, stop: int) -> str:
    """Hash of the bytes start..stop-1 of a file, or of those of them that it has."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop and (block := file.read(min(RANGE_BLOCK, stop - start))):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()[:DIGITS]


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors: name, dtype, shape and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]
