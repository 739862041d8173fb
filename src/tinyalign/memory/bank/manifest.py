"""The manifest of a bank: what it was made from, by which models, and what its files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_file, hash_json
from tinyalign.memory.bank.coding import CodingError, KeyCoding, ValueCoding
from tinyalign.memory.bank.files import cannot_read, write_atomically
from tinyalign.vocabulary import KeysDtype, ValuesDtype

MANIFEST = "manifest.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class SegmentRecord:
    """Rows start..stop-1 of a bank: where their entries are, and hashes of all they hold."""

    name: str
    """The SQLite file with the entries, and with the rows that its commits removed."""
    start: int
    stop: int
    removals: int
    """Rows that its commits removed, anywhere in the bank."""
    bytes: int
    """Size of that file."""
    hash: str
    """Hash of that file."""
    keys_hash: str
    """Hash of the keys of its rows, as they lie on disk."""
    values_hash: str
    """Hash of the values of its rows, as they lie on disk."""
    squared_error: float = 0.0
    """What coding the values cost (`CodingError`)."""
    squared_norm: float = 0.0

    @property
    def size(self) -> int:
        """Rows added and removed: what a merge would copy."""
        return self.stop - self.start + self.removals

    @property
    def coding_error(self) -> CodingError:
        """What coding its values cost."""
        return CodingError(self.squared_error, self.squared_norm)


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
    """"pooled", "attention", "aligned", "joint", or another package's."""
    alpha: float
    """The image's share of a key."""
    key_dim: int
    """d_k."""
    n_latents: int
    """Latents a value has (paper: 32)."""
    d_latents: int
    """Width of a latent (paper: 96)."""
    dataset_hash: str
    """Hash of the samples it was built from."""
    keys_dtype: KeysDtype = "float16"
    values_dtype: ValuesDtype = "int8"
    build: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the build and what it skipped."""
    compressor: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of each file of the Perceiver → its size in bytes and its hash."""
    generation: int = 1
    """Counts compactions: row numbers hold within a generation."""
    commit: int = 1
    """Counts changes; the build is the first."""
    removed: int = 0
    """Rows that are still on disk and no longer in the bank."""
    segments: tuple[SegmentRecord, ...] = ()
    """The rows, in order."""
    format_version: int = FORMAT_VERSION

    @property
    def perceiver_hash(self) -> str:
        """`compressor_hash`, which is what manifest.json has called it from the start."""
        return self.compressor_hash

    @property
    def perceiver_files(self) -> Mapping[str, Mapping[str, Any]]:
        """`compressor`, which is what manifest.json has called it from the start."""
        return self.compressor

    @property
    def rows(self) -> int:
        """Rows on disk, removed ones included."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def count(self) -> int:
        """Entries in the bank."""
        return self.rows - self.removed

    def keeps_rows_of(self, earlier: Manifest) -> bool:
        """Whether a row means here what it meant then: nothing but later commits lie between."""
        same = (self.generation, self.dataset_hash) == (earlier.generation, earlier.dataset_hash)
        return same and self.commit >= earlier.commit

    @property
    def hash(self) -> str:
        """The bank's identity: a hash over all of the above, hashes of files included."""
        return hash_json(asdict(self))

    @property
    def key_coding(self) -> KeyCoding:
        """How keys lie on disk."""
        return KeyCoding(self.keys_dtype, self.key_dim)

    @property
    def value_coding(self) -> ValueCoding:
        """How values lie on disk."""
        return ValueCoding(self.values_dtype, self.n_latents, self.d_latents)

    @property
    def coding_error(self) -> CodingError:
        """What coding the values cost, over all rows."""
        return sum((one.coding_error for one in self.segments), CodingError())

    @property
    def keys_name(self) -> str:
        """The file of the keys."""
        return f"keys-{self.generation}.{self.key_coding.suffix}"

    @property
    def values_name(self) -> str:
        """The file of the values."""
        return f"values-{self.generation}.{self.value_coding.suffix}"

    @property
    def segment_name(self) -> str:
        """The file of the entries that this commit writes."""
        return f"entries-{self.generation}-{self.commit}.sqlite"

    @property
    def sizes(self) -> dict[str, int]:
        """Name of each file → the bytes of it that are committed."""
        named = {one.name: one.bytes for one in self.segments}
        named[self.keys_name] = self.rows * self.key_coding.record.itemsize
        named[self.values_name] = self.rows * self.value_coding.record.itemsize
        return named | {name: facts["bytes"] for name, facts in self.compressor.items()}

    def write(self, folder: Path) -> None:
        """Commit: put manifest.json into the folder in one step."""
        content = asdict(self) | {"hash": self.hash}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check manifest.json. BankError when missing, damaged or of another format."""
        path = folder / MANIFEST
        content = _parsed(path)
        _check_version(path, content.get("format_version"))
        expected = content.pop("hash", None)
        wrong = {f.name for f in fields(cls)} ^ content.keys()
        if wrong:
            raise BankError(f"{path}: fields missing or unknown: {', '.join(sorted(wrong))}")
        if hash_json(content) != expected:
            raise BankError(
                f"{path}: content and its hash do not match; it was edited or damaged. "
                "Restore it from a copy or build the bank again"
            )
        try:
            content["segments"] = tuple(SegmentRecord(**one) for one in content["segments"])
            manifest = cls(**content)
            _ = manifest.sizes
        except (TypeError, KeyError, ConfigError) as error:
            raise BankError(f"{path}: not a manifest this TinyAlign can read ({error})") from error
        return manifest


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int):
        raise BankError(f"{path}: no format_version in it; this is no bank manifest")
    if version > FORMAT_VERSION:
        raise BankError(
            f"{path}: written in format {version}, this TinyAlign reads up to "
            f"{FORMAT_VERSION}; upgrade tinyalign-vlm"
        )
    if version < FORMAT_VERSION:
        raise BankError(
            f"{path}: written in format {version}, before TinyAlign's first release, which reads "
            f"{FORMAT_VERSION}; build the bank again"
        )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BankError(
            f"{path}: not found; a memory bank is a folder with a {MANIFEST} "
            "(an unfinished build has none: run the same build again to finish it)"
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:
        raise BankError(f"{path}: damaged, not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise BankError(f"{path}: damaged, expected a JSON object")
    return content


def describe_file(path: Path) -> dict[str, Any]:
    """What a manifest records of a data file."""
    return {"bytes": path.stat().st_size, "hash": hash_file(path)}
