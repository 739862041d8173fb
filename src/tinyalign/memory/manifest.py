"""The manifest of a bank: what it was made from, by which models, and what its files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tinyalign.errors import BankError
from tinyalign.hashing import hash_file, hash_json
from tinyalign.memory.files import write_atomically

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Everything a reader must know before it trusts a bank. Its rename into place is the commit.

    It holds no times and no paths, so that the same input gives the same bytes.
    """

    vision_name: str
    """What the vision encoder was loaded from (a hub id, a folder's name, a packaged name)."""
    vision_hash: str
    """Hash of the vision encoder whose features made keys and values."""
    compressor_hash: str
    """Hash of the Perceiver and its tokenizer, which made the values."""
    key_hash: str
    """Hash of the key function."""
    key_kind: str
    """"pooled", "attention" or "aligned"."""
    alpha: float
    """The image's share of a key."""
    key_dim: int
    """d_k."""
    n_latents: int
    """Latents a value has (paper: 32)."""
    d_latents: int
    """Width of a latent (paper: 96)."""
    count: int
    """Number of entries."""
    dataset_hash: str
    """Hash of the samples it was built from."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the build and what it skipped."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of each data file → its size in bytes and its hash."""
    keys_dtype: str = "float32"
    values_dtype: str = "float16"
    format_version: int = FORMAT_VERSION

    @property
    def hash(self) -> str:
        """The bank's identity: a hash over all of the above, file hashes included."""
        return hash_json(asdict(self))

    def write(self, folder: Path) -> None:
        """Commit: put manifest.json into the folder in one step."""
        content = asdict(self) | {"hash": self.hash}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check manifest.json. BankError when missing, damaged or from a newer format."""
        path = folder / MANIFEST
        content = _parsed(path)
        version = content.get("format_version")
        if not isinstance(version, int):
            raise BankError(f"{path}: no format_version in it; this is no bank manifest")
        if version > FORMAT_VERSION:
            raise BankError(
                f"{path}: written in format {version}, this TinyAlign reads up to "
                f"{FORMAT_VERSION}; upgrade tinyalign-vlm"
            )
        expected = content.pop("hash", None)
        missing = {f.name for f in fields(cls)} ^ content.keys()
        if missing:
            raise BankError(f"{path}: fields missing or unknown: {', '.join(sorted(missing))}")
        if hash_json(content) != expected:
            raise BankError(
                f"{path}: content and its hash do not match; it was edited or damaged. "
                "Restore it from a copy or build the bank again"
            )
        return cls(**content)


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BankError(
            f"{path}: not found; a memory bank is a folder with a {MANIFEST} "
            "(an unfinished build has none: run the same build again to finish it)"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BankError(f"{path}: damaged, not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise BankError(f"{path}: damaged, expected a JSON object")
    return content


def describe_file(path: Path) -> dict[str, Any]:
    """What a manifest records of a data file."""
    return {"bytes": path.stat().st_size, "hash": hash_file(path)}
