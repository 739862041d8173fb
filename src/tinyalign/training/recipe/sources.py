"""A recipe's data sources, opened; and views of some of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tinyalign.data.readers import check_there, open_dataset, open_stream
from tinyalign.data.readers.mixture import MixtureStream
from tinyalign.data.readers.shards.stream import Part, Stream
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.memory import MemoryArgs


def check_source(source: DataSource) -> None:
    """Raise DataError where a source, or a part of its mixture, has no files; reads none."""
    if not source.path and source.mixture is None:
        raise DataError("a data source without a path; name a file, folder, glob or URL")
    for one in source.parts:
        check_there(one.path, format=one.format, split=one.split)


def open_source(
    source: DataSource, seed: int, *, keep_unreadable: bool = False, strict: bool = False
) -> Sequence[Sample]:
    """The samples of a source; `seed` draws captions. Raises DataError for an empty one.

    keep_unreadable, strict: as in `open_dataset`.
    """
    if not source.path:
        raise DataError("a data source without a path; name a file, folder, glob or URL")
    samples = open_dataset(
        source.path,
        format=source.format,
        image_folder=source.image_folder,
        split=source.split,
        prompt=source.prompt,
        captions=source.captions,
        seed=seed,
        limit=source.limit,
        keep_unreadable=keep_unreadable,
        strict=strict,
    )
    if not len(samples):
        raise DataError(f"{source.path}: no samples in it; check path and split")
    return samples


def open_source_stream(
    source: DataSource,
    seed: int,
    *,
    part: Part | None = None,
    epochs: int | None = None,
    strict: bool = False,
) -> Stream:
    """The samples of a source as a stream, of a mixture too; `seed` shuffles and draws captions."""
    if not source.path and source.mixture is None:
        raise DataError("a stream without a path; name shards, or a mixture of data sets")
    streams = [
        open_stream(
            one.path,
            format=one.format,
            image_folder=one.image_folder,
            split=one.split,
            prompt=one.prompt,
            captions=one.captions,
            seed=seed,
            buffer=source.shuffle_buffer,
            part=part,
            epochs=epochs,
            strict=strict,
        )
        for one in source.parts
    ]
    if source.mixture is None:
        return streams[0]
    return MixtureStream(streams, [one.weight for one in source.mixture], seed)


def memory_samples(
    memory: MemoryArgs, pretrain: DataSource, *, strict: bool = False
) -> Sequence[Sample]:
    """What the bank is made of: at most `memory.bank.entries` samples, drawn with `memory.seed`.

    strict: as in `open_dataset`.
    """
    source = memory.bank.data or pretrain
    if memory.bank.captions is not None:
        source = replace(source, captions=memory.bank.captions)
    samples = open_source(source, memory.seed, strict=strict)
    return draw(samples, memory.bank.entries, memory.seed)


def perceiver_samples(
    memory: MemoryArgs, pretrain: DataSource, *, strict: bool = False
) -> Sequence[Sample]:
    """What the Perceiver is trained on: the bank's source, with every caption of an image.

    strict: as in `open_dataset`.
    """
    source = replace(memory.bank.data or pretrain, captions="all")
    return open_source(source, memory.seed, strict=strict)


def draw(samples: Sequence[Sample], limit: int | None, seed: int) -> Sequence[Sample]:
    """`limit` of the samples, drawn evenly, in their first order; all if there are no more."""
    if limit is None or len(samples) <= limit:
        return samples
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return Subset(samples, sorted(order[:limit].tolist()))


class Subset(Sequence[Sample]):
    """Some samples of another data set."""

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self.samples[i] for i in self.indices[index]]
        return self.samples[self.indices[index]]


class Renamed(Sequence[Sample]):
    """Another data set's samples, said to come from `source`."""

    def __init__(self, samples: Sequence[Sample], source: str) -> None:
        self.samples, self.source = samples, source

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        found = self.samples[index]
        if isinstance(index, slice):
            return [replace(one, source=self.source) for one in found]
        return replace(found, source=self.source)
