"""Tar and parquet shards, near or far, read as a data set or as a stream."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "LISTED": "tinyalign.data.readers.shards.shard",
        "PARQUET_SUFFIXES": "tinyalign.data.readers.shards.shard",
        "RANGE": "tinyalign.data.readers.shards.shard",
        "Record": "tinyalign.data.readers.shards.shard",
        "SUFFIXES": "tinyalign.data.readers.shards.shard",
        "SequenceShard": "tinyalign.data.readers.shards.shard",
        "Shard": "tinyalign.data.readers.shards.shard",
        "TAR_SUFFIXES": "tinyalign.data.readers.shards.shard",
        "cannot_open": "tinyalign.data.readers.shards.shard",
        "find_shards": "tinyalign.data.readers.shards.shard",
        "is_shards": "tinyalign.data.readers.shards.shard",
        "open_shard": "tinyalign.data.readers.shards.shard",
        "shard_names": "tinyalign.data.readers.shards.shard",
        "without_query": "tinyalign.data.readers.shards.shard",
    },
)
