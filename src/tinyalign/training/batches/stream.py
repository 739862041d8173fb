"""Training items of a stream: read, looked at and searched block by block as training goes on.

A block is a small data set with random access, prepared as a whole one would be: features out of
the cache or into it, neighbours searched, then items. The position that a checkpoint keeps is
where the block began and how many of its items were given, so that a resumed run prepares the
same blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any, TypeVar

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

from tinyalign.data.readers.shards.stream import Part, Stream
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError, first_few
from tinyalign.log import quiet
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.perceiver import load_perceiver
from tinyalign.memory.search.index import KeyIndex
from tinyalign.memory.search.neighbours import NeighbourTable
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.reordering import reordered
from tinyalign.training.batches.dataset import Neighbours, TrainingDataset
from tinyalign.training.caches.features import Features
from tinyalign.training.caches.query_keys import query_keys
from tinyalign.training.recipe.memory import MemoryArgs

BLOCK = 256
"""Samples prepared at a time."""
AHEAD = 256
"""Items that are kept ready."""
PATIENCE = 10
"""So many blocks without one usable sample end a run."""
Prepare = Callable[[Sequence[Sample], int], TrainingDataset]
T = TypeVar("T")


class StreamDataset(IterableDataset):
    """Items for `data.collator.Collator` without end, in the order of the stream.

    An item is what `TrainingDataset` makes of its sample; `index` is its number among the items of
    all processes. A sample that cannot be used is left out, listed and warned of; with `strict`
    it raises DataError.
    """

    def __init__(
        self,
        stream: Stream,
        prepare: Prepare,
        *,
        part: Part | None = None,
        block: int = BLOCK,
        strict: bool = False,
        ahead: bool = False,
    ) -> None:
        """prepare(samples, block number): the items of a block. part: this process's, as the
        stream has it. ahead: prepare in a second thread while the model computes."""
        self.stream, self.prepare, self.block = stream, prepare, block
        self.part = part or Part()
        self.strict, self.ahead = strict, ahead
        self.skipped: dict[str, str] = {}
        self._position: dict[str, Any] = {
            "stream": stream.state_dict(), "block": 0, "place": 0, "items": 0,
        }  # fmt: skip

    def loader(self, batch_size: int, collate: Callable[[list[Any]], Any]) -> DataLoader:
        """Batches of this process, none of them made before it is asked for."""
        own = Generator()  # drawing from the global one would move training's
        return DataLoader(self, batch_size=batch_size, collate_fn=collate, generator=own)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        items = self._items()
        for item, position in read_ahead(items, AHEAD) if self.ahead else items:
            self._position = position
            yield item

    def _items(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Items, each with the position behind it."""
        position = dict(self._position)
        self.stream.load_state_dict(position["stream"])
        samples, idle = iter(self.stream), 0
        while True:
            position["stream"] = self.stream.state_dict()
            block = list(islice(samples, self.block))
            if not block:
                return
            given = position["items"]
            for place, item in self._of_block(block, position["block"], position["place"]):
                item["index"] = position["items"] * self.part.count + self.part.index
                position = {**position, "place": place + 1, "items": position["items"] + 1}
                yield item, position
            idle = 0 if position["items"] > given or position["place"] else idle + 1
            if idle == PATIENCE:
                n, reasons = idle * self.block, first_few(self.skipped.values())
                raise DataError(f"none of the last {n} samples can be used: {reasons}")
            position = {**position, "block": position["block"] + 1, "place": 0}

    def _of_block(
        self, samples: Sequence[Sample], number: int, first: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place in the block, item) of those from place `first` on that can be used."""
        try:
            with quiet():
                dataset = self.prepare(samples, number)
        except DataError as error:
            if self.strict:
                raise
            self.skipped |= {sample.id: str(error) for sample in samples}
            return
        self.skipped |= dataset.skipped
        for place in range(first, len(dataset.indices)):
            index = dataset.indices[place]
            try:
                item = dataset.item(index)
            except DataError as error:
                if self.strict:
                    raise
                dataset.leave_out(samples[index].id, str(error))
                self.skipped[samples[index].id] = str(error)
            else:
                yield place, item

    # -- what outlives the process ------------------------------------------------------------

    def left_out(self) -> dict[str, str]:
        """Shards, records and samples that were left out so far, and why."""
        return {**self.stream.report.left_out(), **self.skipped}

    def save_position(self, folder: Path) -> None:
        """Write the position after the last item given, beside a checkpoint's other files."""
        note = {**self._position, "left_out": self.left_out()}
        (folder / self._file).write_text(json.dumps(note), encoding="utf-8")

    def load_position(self, folder: Path) -> None:
        """Go on from a checkpoint. Raises DataError where it holds no position of this stream."""
        path = folder / self._file
        if not path.is_file():
            raise DataError(
                f"{path}: expected the position in the stream, found no such file; go on with the "
                "same number of processes, or start over with --no-resume"
            )
        note = json.loads(path.read_text(encoding="utf-8"))
        self.skipped |= note.pop("left_out")
        self.stream.load_state_dict(note["stream"])
        self._position = note

    @property
    def _file(self) -> str:
        return f"stream-{self.part.index}-of-{self.part.count}.json"


class BlockSearch:
    """Neighbours of the blocks of a stream, out of one bank, with the recipe's control."""

    def __init__(self, bank: MemoryBank, memory: MemoryArgs) -> None:
        self.bank, self.memory = bank, memory
        self.perceiver = load_perceiver(bank)
        self.index = KeyIndex(bank, "cpu", engine="exact")
        self.ranker = Ranker(bank, memory.ranking)

    def __call__(self, samples: Sequence[Sample], features: Features, number: int) -> Neighbours:
        """Rows and scores for each sample of block `number`; its own entries are excluded."""
        hashes = features.image_hashes()
        instructions = [sample.instruction for sample in samples]
        queries = query_keys(self.perceiver, features, instructions, hashes)
        ids = [sample.id for sample in samples]
        k = self.memory.ranking.neighbours
        table = NeighbourTable.build(self.bank, queries, ids, hashes, k, index=self.index)
        if self.memory.order != "similarity":
            table = reordered(table, self.ranker, self.memory.k)
        seed = self.memory.seed * 1_000_003 + number
        return Neighbours(self.bank, table.under(self.memory.control, seed), self.memory.k)


def part_of_launch() -> Part:
    """This process's part, as `accelerate launch` and `torchrun` number processes."""
    return Part(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def read_ahead(source: Iterator[T], size: int) -> Iterator[T]:
    """The same items; a thread takes up to `size` of them from `source` before they are wanted."""
    ready: Queue[tuple[str, Any]] = Queue(size)
    stop = Event()

    def fill() -> None:
        try:
            for item in source:
                ready.put(("item", item))
                if stop.is_set():
                    return
            ready.put(("end", None))
        except BaseException as error:
            ready.put(("error", error))

    thread = Thread(target=fill, name="stream", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        while thread.is_alive():  # it may wait for room
            if not ready.empty():
                ready.get_nowait()
            thread.join(0.01)
