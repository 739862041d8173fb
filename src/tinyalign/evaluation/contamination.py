"""Whether what a model is judged on was in its bank, or in what it was trained on.

Images are compared by the hash of their decoded pixels: the same photo under another name, or in
another lossless container, is found; one that was cropped or compressed anew is not. That one
shows in the similarity of keys, once a model has searched: see `near_duplicates`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyalign.data.images import image_hash
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError, EvaluationError
from tinyalign.evaluation.results import Prediction, Skipped
from tinyalign.log import progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.training.caches.image_index import ImageIndex, reference
from tinyalign.vocabulary import NEAR_DUPLICATE

EXAMPLES = 5
BATCH = 256
"""Images that are hashed before they are written to the index."""


@dataclass(frozen=True)
class Overlap:
    """How many of the judged samples were seen before, in one place."""

    images: int
    """Samples of which an image was there."""
    ids: int | None
    """Samples whose id was there; None where ids say nothing, in data of another source."""
    of: int
    """Samples that are judged."""
    seen: int
    """Samples of which either was there."""
    examples: tuple[str, ...] = ()
    """Ids of the first few of these."""

    @property
    def share(self) -> float:
        """The part of the judged samples that was there."""
        return self.seen / self.of if self.of else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "images": self.images,
            "ids": self.ids,
            "of": self.of,
            "seen": self.seen,
            "share": self.share,
            "examples": list(self.examples),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Overlap:
        """Inverse of `as_dict`."""
        known = {f.name: values[f.name] for f in fields(cls)}
        return cls(**{**known, "examples": tuple(values["examples"])})

    def __str__(self) -> str:
        found = f"{self.images} of {self.of} samples by image"
        if self.ids is not None:
            found += f", {self.ids} by id"
        if not self.seen:
            return found
        return f"{found} ({100 * self.share:.1f} %), such as {', '.join(self.examples)}"


@dataclass(frozen=True)
class Contamination:
    """Overlap of the judged samples with the bank and with training data; None: not compared."""

    bank: Overlap | None = None
    train: Overlap | None = None
    unreadable: list[Skipped] = field(default_factory=list)
    """Judged samples whose images cannot be read, and so not be compared."""

    @property
    def line(self) -> str:
        """All of it in one line, for people."""
        bank = "not compared, there is none" if self.bank is None else str(self.bank)
        train = "not compared, none was named" if self.train is None else str(self.train)
        unread = f"; {len(self.unreadable)} images cannot be read" if self.unreadable else ""
        return f"bank: {bank}; training data: {train}{unread}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "bank": None if self.bank is None else self.bank.as_dict(),
            "train": None if self.train is None else self.train.as_dict(),
            "unreadable": len(self.unreadable),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Contamination:
        """Of a results file; the reasons of what is unreadable are not in it."""
        overlaps = {
            name: None if not (found := values.get(name)) else Overlap.from_dict(found)
            for name in ("bank", "train")
        }
        return cls(**overlaps, unreadable=[Skipped("", "")] * values.get("unreadable", 0))

    @property
    def contaminated(self) -> bool:
        """Whether anything that is judged was seen before."""
        return any(each is not None and each.seen for each in (self.bank, self.train))

    def refuse(self) -> None:
        """Raise EvaluationError where anything that is judged was seen before."""
        if self.contaminated:
            raise EvaluationError(
                f"What is to be judged was seen before: {self.line}. Take these samples out of "
                "the bank and the training data, judge on others, or leave --strict off: the "
                "overlap then stands in the results."
            )


def find_contamination(
    samples: Sequence[Sample],
    *,
    bank: MemoryBank | None = None,
    train: Sequence[Sample] | None = None,
    cache: Path | None = None,
) -> Contamination:
    """Look for the images and ids of `samples` in a bank, and for their images in training data.

    Decodes every image once. `cache`: a folder that remembers hashes of files from run to run;
    by default nothing is remembered.
    """
    ids = [samples[i].id for i in range(len(samples))]
    with _index(cache) as index:
        hashes, unreadable = image_hashes(samples, index)
        found = contamination_of(ids, hashes, bank=bank, train=train, index=index)
    return replace(found, unreadable=[Skipped(ids[i], why) for i, why in unreadable.items()])


def contamination_of(
    ids: Sequence[str],
    hashes: Sequence[tuple[str, ...]],
    *,
    bank: MemoryBank | None = None,
    train: Sequence[Sample] | None = None,
    index: ImageIndex | None = None,
) -> Contamination:
    """As `find_contamination`, of samples whose image hashes are known."""
    in_train = None
    if train is not None:
        with nullcontext(index) if index is not None else _index(None) as opened:
            known = {each for those in image_hashes(train, opened)[0] for each in those}
        in_train = _overlap(ids, hashes, known, None)
    return Contamination(None if bank is None else _in_bank(ids, hashes, bank), in_train)


def near_duplicates(predictions: Sequence[Prediction]) -> str:
    """How many samples found an entry with nearly their query as its key; "" without a search.

    In words, by the scores of the search, which leaves out entries with a sample's image or id.
    """
    best = [max(one.memory_scores) for one in predictions if one.memory_scores]
    if not best:
        return ""
    near = sum(score >= NEAR_DUPLICATE for score in best)
    least = f"{NEAR_DUPLICATE:g}"
    return f"{near} of {len(best)} samples by key (another entry's is >= {least} similar)"


@contextmanager
def _index(folder: Path | None) -> Iterator[ImageIndex]:
    with tempfile.TemporaryDirectory() as aside:
        yield ImageIndex(folder or Path(aside))


def image_hashes(
    samples: Sequence[Sample], index: ImageIndex
) -> tuple[list[tuple[str, ...]], dict[int, str]]:
    """(hashes of the readable images of each sample, why others cannot be read by sample).

    Images that `index` does not know yet are decoded and added to it.
    """
    names = [tuple(map(reference, samples[i].images)) for i in range(len(samples))]
    known = index.rows_of_refs(name for those in names for name in those)
    todo = [i for i, those in enumerate(names) if any(name not in known for name in those)]
    unreadable: dict[int, str] = {}
    fresh: dict[str, str] = {}
    done = set(known)
    with progress("Looking at images", len(todo)) as advance:
        for number in todo:
            for name, image in zip(names[number], samples[number].images):
                if name in done:
                    continue
                try:
                    fresh[name] = image_hash(image)
                    done.add(name)
                except DataError as error:
                    unreadable[number] = str(error)
            advance(1)
            if len(fresh) >= BATCH:
                index.add(list(fresh), list(fresh.values()))
                fresh = {}
    if fresh:
        index.add(list(fresh), list(fresh.values()))
    rows = index.rows_of_refs(done)
    by_name = dict(zip(rows, index.hashes(list(rows.values()))))
    return [tuple(by_name[n] for n in those if n in by_name) for those in names], unreadable


def _in_bank(ids: Sequence[str], hashes: Sequence[tuple[str, ...]], bank: MemoryBank) -> Overlap:
    rows = bank.rows_of(ids, {each for those in hashes for each in those})
    entries = bank.entries.at(np.setdiff1d(rows, bank.removed).tolist()).values()
    return _overlap(ids, hashes, {e.image_hash for e in entries}, {e.id for e in entries})


def _overlap(
    ids: Sequence[str],
    hashes: Sequence[tuple[str, ...]],
    known_hashes: set[str],
    known_ids: set[str] | None,
) -> Overlap:
    by_image = [not known_hashes.isdisjoint(those) for those in hashes]
    by_id = [known_ids is not None and name in known_ids for name in ids]
    seen = [name for name, *found in zip(ids, by_image, by_id) if any(found)]
    return Overlap(
        images=sum(by_image),
        ids=None if known_ids is None else sum(by_id),
        of=len(ids),
        seen=len(seen),
        examples=tuple(seen[:EXAMPLES]),
    )
