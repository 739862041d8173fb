"""A bank as it lies on disk, read: manifest, entries, coding, verification."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "MemoryBank": "tinyalign.memory.bank.bank",
    },
    old={
        "COMPRESSOR": "tinyalign.memory.bank.bank:PERCEIVER_FOLDER",
    },
)
