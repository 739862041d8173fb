"""What is noted beside a kept index: whose rows it holds, how it is searched, and its file's hash.

An index is trusted as far as its note vouches for it: the file is the one that was written, and
the rows in it are the bank's first rows, by the hashes of their keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tinyalign.hashing import hash_bytes, hash_file, hash_json
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.files import replace_file
from tinyalign.memory.bank.manifest import Manifest

FOLDER = "index"
MADE_ANEW = "the next approximate search makes it anew; the bank itself is not concerned"

Rows = tuple[int, int, str]
"""Rows start..stop-1, and the hash of their keys."""


@dataclass(frozen=True)
class IndexNote:
    """The note of one index file."""

    of: str
    """Identity of the bank, apart from its rows."""
    segments: tuple[Rows, ...]
    """The rows that are in the index, in order, as the manifest recorded their keys."""
    nprobe: int
    """Lists that a search looks at."""
    recall: float
    """The recall that was measured with as many."""
    wanted: float
    """The recall that was asked for."""
    bytes: int
    """Size of the index file."""
    hash: str
    """Hash of the index file."""

    @classmethod
    def of_file(
        cls, path: Path, manifest: Manifest, *, nprobe: int, recall: float, wanted: float
    ) -> IndexNote:
        """The note of an index file that holds all rows of a bank."""
        return cls(
            _identity(manifest), _segments(manifest), nprobe, recall, wanted,
            bytes=path.stat().st_size, hash=hash_file(path),
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows in the index."""
        return self.segments[-1][1] if self.segments else 0

    def write(self, aside: Path, path: Path) -> None:
        """Put the note into `path` in one step, by way of `aside`."""
        content = asdict(self)
        aside.write_text(json.dumps(content | {"note_hash": hash_json(content)}))
        replace_file(aside, path)

    @classmethod
    def read(cls, path: Path) -> IndexNote:
        """Raises OSError where there is none, ValueError for one that is damaged or of old."""
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object")
        expected = content.pop("note_hash", None)
        if wrong := {each.name for each in fields(cls)} ^ content.keys():
            raise ValueError(f"fields missing or unknown: {', '.join(sorted(wrong))}")
        if hash_json(content) != expected:
            raise ValueError("its content and its hash do not match")
        rows: list[list[Any]] = content.pop("segments")
        return cls(segments=tuple((start, stop, of) for start, stop, of in rows), **content)

    def wrong_file(self, path: Path) -> str | None:
        """What is wrong with the index file, after reading every byte of it; None: nothing."""
        try:
            if (found := path.stat().st_size) != self.bytes:
                return f"{path}: expected {self.bytes} bytes, found {found}; it is damaged"
            if (hashed := hash_file(path)) != self.hash:
                return f"{path}: expected hash {self.hash}, found {hashed}; it is damaged"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror or error})"
        return None

    def fits(self, bank: MemoryBank) -> bool:
        """Whether the indexed rows are the bank's first rows, with the keys that it has now.

        Keys are read only of rows whose commits were merged since.
        """
        if self.of != _identity(bank.manifest) or self.rows > bank.rows:
            return False
        recorded = set(_segments(bank.manifest))
        return all(
            one in recorded or hash_bytes(bank.keys[one[0] : one[1]].tobytes()) == one[2]
            for one in self.segments
        )


def index_path(bank: MemoryBank) -> Path:
    """Where the index of a bank lies, if it has one; its note lies beside it, as .json."""
    return bank.folder / FOLDER / f"ivf-{bank.manifest.generation}.faiss"


def usable_note(bank: MemoryBank) -> IndexNote | None:
    """The note of a bank's index; None where there is no index to be trusted, with why logged."""
    path = index_path(bank)
    try:
        note = IndexNote.read(path.with_suffix(".json"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.info("search: %s cannot be used (%s)", path.with_suffix(".json"), error)
        return None
    if not note.fits(bank):
        logger.info("search: %s is of other rows than the bank has", path)
        return None
    if wrong := note.wrong_file(path):
        logger.info("search: %s", wrong)
        return None
    return note


def index_problems(bank: MemoryBank) -> Iterator[str]:
    """What is damaged of a bank's kept index, one sentence each. None: whole, or there is none.

    An index of other rows is no damage: a search makes it anew.
    """
    path = index_path(bank)
    try:
        note = IndexNote.read(path.with_suffix(".json"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield f"{path.with_suffix('.json')}: not the note of an index ({error}); {MADE_ANEW}"
        return
    if wrong := note.wrong_file(path):
        yield f"{wrong}; {MADE_ANEW}"


def _identity(manifest: Manifest) -> str:
    return hash_json([manifest.dataset_hash, manifest.key_hash, manifest.generation])


def _segments(manifest: Manifest) -> tuple[Rows, ...]:
    each = ((one.start, one.stop, one.keys_hash) for one in manifest.segments)
    return tuple(one for one in each if one[0] < one[1])  # others hold removals alone
