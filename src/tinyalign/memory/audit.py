"""What a bank already knows of the samples that a model is judged on.

Three questions, from certain to likely. Exact: is a sample's image in the bank (by the hash of
its pixels), or its id (of the same data set, where that is known)? Near: does the bank hold an
entry whose key is almost the sample's own, or whose text is the same? Self-hit: would a search
that excludes nothing find the sample's own entry, first or among the k best?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyalign.data.sample import Sample
from tinyalign.errors import BankError, ConfigError, DataError, first_few
from tinyalign.lazy import exports
from tinyalign.log import logger, progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.make_entries import Batches, Prepared, UnusableSample, encode
from tinyalign.memory.perceiver import Perceiver, load_perceiver
from tinyalign.memory.search.index import KeyIndex
from tinyalign.memory.search.retriever import check_encoder
from tinyalign.vocabulary import NEAR_DUPLICATE

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder

NEAREST = 5  # near-duplicates listed for a sample, at most
BLOCK = 1024  # queries searched at a time


@dataclass(frozen=True)
class Overlap:
    """What the bank knows of one sample; entries are named by their ids."""

    id: str
    same_image: tuple[str, ...] = ()
    """Entries with the same pixels."""
    same_id: tuple[str, ...] = ()
    """Entries with the sample's id."""
    own_rank: int | None = None
    """Place of its own entry (same image or same id) in a search; 1 is first; None: not found."""
    near: tuple[tuple[str, float], ...] = ()
    """Other entries with almost the same key, and how similar it is."""
    same_text: tuple[str, ...] = ()
    """Other entries with the same text, up to case and spaces."""

    def __bool__(self) -> bool:
        """Whether anything was found."""
        return bool(self.same_image or self.same_id or self.near or self.same_text)


@dataclass(frozen=True)
class Audit:
    """What a bank knows of a data set. A count is None where it was not looked for."""

    samples: int
    """Samples that were looked at."""
    entries: int
    """Entries in the bank."""
    same_image: int
    """Samples whose image is in the bank."""
    same_id: int
    """Samples whose id is in the bank (of the same data set, where that was given)."""
    found: tuple[Overlap, ...]
    """Each sample of which the bank knows something, in order."""
    self_hits: int | None = None
    """Samples whose own entry would come first in a search."""
    self_hits_at_k: int | None = None
    """Samples whose own entry would be among the k best."""
    near: int | None = None
    """Samples with another entry of almost the same key."""
    same_text: int | None = None
    """Samples with another entry of the same text."""
    near_same_text: int | None = None
    """Samples with another entry of almost the same key and the same text."""
    k: int = 0
    threshold: float = NEAR_DUPLICATE
    """Similarity from which a key is almost the same."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Ids of samples that could not be looked at, and why."""

    def summary(self) -> str:
        """All counts in one line."""
        parts = [f"{self.same_image} with an image in the bank", f"{self.same_id} with an id in it"]
        if self.self_hits is not None:
            parts.append(f"{self.self_hits} would find their own entry first")
            parts.append(f"{self.self_hits_at_k} among the {self.k} best")
        if self.near is not None:
            parts.append(f"{self.near} near another entry (keys >= {self.threshold:g} similar)")
        if self.same_text is not None:
            parts.append(f"{self.same_text} with the text of another entry")
        return f"{self.samples} samples, {self.entries} entries: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def audit(
    bank: MemoryBank,
    ids: Sequence[str],
    image_hashes: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    k: int = 5,
    near: float = NEAR_DUPLICATE,
    device: str | torch.device = "cpu",
) -> Audit:
    """Compare N samples with a bank; ids and image hashes ("" for none) alone cost next to nothing.

    sources: an id counts only with the same source. texts: whole texts, for `same_text`.
    queries (N, d_k): what a model would search by, for self-hits at 1 and k. keys (N, d_k): the
    keys the samples would have as entries, for near-duplicates from similarity `near` on. Both
    are searched exactly, whatever the bank's size.
    Raises ConfigError for lengths that differ, and for k or near out of range.
    """
    given = {"image hashes": image_hashes, "sources": sources, "texts": texts}
    _check_lengths(len(ids), {**given, "queries": queries, "keys": keys})
    if k < 1 or not -1.0 <= near <= 1.0:
        raise ConfigError(f"k must be at least 1 and near within -1..1, found {k} and {near}")
    known = _Known(bank, ids, image_hashes)
    same_image = [known.by_image[name] if name else [] for name in image_hashes]
    same_id = [known.with_id(i, sources[n] if sources else None) for n, i in enumerate(ids)]
    own = [sorted({*a, *b}) for a, b in zip(same_image, same_id)]
    index = KeyIndex(bank, device, engine="exact")
    ranks = _ranks(index, queries, own, k)
    close = _near(index, keys, own, near)
    alike = _same_texts(bank, texts, own)
    found = [
        known.overlap(name, *those)
        for name, *those in zip(ids, same_image, same_id, ranks, close, alike)
    ]
    both = sum(bool({row for row, _ in close[n]} & set(alike[n])) for n in range(len(ids)))
    return Audit(
        samples=len(ids),
        entries=len(bank),
        same_image=sum(map(bool, same_image)),
        same_id=sum(map(bool, same_id)),
        found=tuple(filter(None, found)),
        self_hits=None if queries is None else sum(rank == 1 for rank in ranks),
        self_hits_at_k=None if queries is None else sum(rank is not None for rank in ranks),
        near=None if keys is None else sum(map(bool, close)),
        same_text=None if texts is None else sum(map(bool, alike)),
        near_same_text=None if keys is None or texts is None else both,
        k=k,
        threshold=near,
    )


def _check_lengths(samples: int, given: Mapping[str, Sized | None]) -> None:
    """ConfigError unless everything that is given has one for each sample."""
    for name, one in given.items():
        if one is not None and len(one) != samples:
            raise ConfigError(f"{samples} ids but {len(one)} {name}; an audit needs one a sample")


class _Known:
    """The bank's entries that share an id or an image with the samples; removed ones do not."""

    def __init__(self, bank: MemoryBank, ids: Iterable[str], hashes: Iterable[str]) -> None:
        self.bank = bank
        gone = set(bank.removed.tolist())
        rows = bank.rows_of(ids, filter(None, hashes))
        self.entries = bank.entries.at(row for row in rows if row not in gone)
        self.by_image: dict[str, list[int]] = defaultdict(list)
        self.by_id: dict[str, list[int]] = defaultdict(list)
        for row, entry in self.entries.items():
            self.by_image[entry.image_hash].append(row)
            self.by_id[entry.id].append(row)

    def with_id(self, name: str, source: str | None) -> list[int]:
        """Rows with this id, of this source unless it is None."""
        rows = self.by_id.get(name, [])
        return [row for row in rows if source is None or self.entries[row].source == source]

    def overlap(
        self,
        name: str,
        same_image: Sequence[int],
        same_id: Sequence[int],
        rank: int | None,
        close: Sequence[tuple[int, float]],
        alike: Sequence[int],
    ) -> Overlap:
        """What the bank has of a sample; the rows of entries become their ids."""
        near = tuple((self.names([row])[0], score) for row, score in close)
        return Overlap(
            name, self.names(same_image), self.names(same_id), rank, near, self.names(alike)
        )

    def names(self, rows: Iterable[int]) -> tuple[str, ...]:
        """Ids of entries."""
        wanted = sorted(rows)
        missing = [row for row in wanted if row not in self.entries]
        self.entries |= self.bank.entries.at(missing) if missing else {}
        return tuple(self.entries[row].id for row in wanted)


def _ranks(
    index: KeyIndex, queries: Tensor | None, own: Sequence[list[int]], k: int
) -> list[int | None]:
    """Place of each sample's own entry among the k best, or None."""
    ranks: list[int | None] = [None] * len(own)
    if queries is None:
        return ranks
    for start in range(0, len(own), BLOCK):
        rows = index.topk(queries[start : start + BLOCK], k)[0].tolist()
        for n, found in enumerate(rows, start):
            ranks[n] = next((i for i, row in enumerate(found, 1) if row in own[n]), None)
    return ranks


def _near(
    index: KeyIndex, keys: Tensor | None, own: Sequence[list[int]], near: float
) -> list[list[tuple[int, float]]]:
    """For each sample, rows of others whose key is at least `near` similar, and how much."""
    close: list[list[tuple[int, float]]] = [[] for _ in own]
    if keys is None:
        return close
    for start in range(0, len(own), BLOCK):
        part = slice(start, start + BLOCK)
        rows, scores = index.topk(keys[part], NEAREST, own[part])
        for n, pairs in enumerate(zip(rows.tolist(), scores.tolist()), start):
            close[n] = [(r, s) for r, s in zip(*pairs) if r >= 0 and s >= near]
    return close


def _same_texts(
    bank: MemoryBank, texts: Sequence[str] | None, own: Sequence[list[int]]
) -> list[list[int]]:
    """For each sample, rows of others that have its text."""
    if texts is None:
        return [[] for _ in own]
    wanted = {_plain(text) for text in texts} - {""}
    rows: dict[str, list[int]] = defaultdict(list)
    gone = set(bank.removed.tolist())
    for row, text in enumerate(bank.texts):
        if row not in gone and (plain := _plain(text)) in wanted:
            rows[plain].append(row)
    return [
        [row for row in rows.get(_plain(text), []) if row not in own[n]]
        for n, text in enumerate(texts)
    ]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


# -- from a data set -----------------------------------------------------------------------------


def audit_samples(
    bank: MemoryBank,
    samples: Sequence[Sample],
    vision: VisionEncoder,
    *,
    k: int = 5,
    near: float = NEAR_DUPLICATE,
    batch_size: int = 32,
    workers: int = 0,
    strict: bool = False,
) -> Audit:
    """Compare a data set with a bank in every way, in one pass over its images.

    A sample without a usable image is left out and listed; with `strict` it raises DataError.
    Raises BankError for another encoder than the bank's, and if no sample could be looked at.
    """
    check_encoder(bank, vision.hash)
    perceiver = load_perceiver(bank)
    batches = Batches(samples, range(len(samples)), batch_size, workers=workers)
    seen: list[tuple[Sample, str]] = []
    queries, keys, skipped = [], [], []
    with progress("Looking at images", len(samples)) as advance:
        for batch in batches.starting_at(0):
            skipped += [
                (one.sample_id, one.reason) for one in batch if isinstance(one, UnusableSample)
            ]
            if skipped and strict:
                raise DataError(skipped[0][1])
            good = [one for one in batch if isinstance(one, Prepared)]
            if good:
                made = _keys(good, vision, perceiver)
                queries.append(made[0])
                keys.append(made[1])
                seen += [(one.sample, one.image_hash) for one in good]
            advance(len(batch))
    reasons = first_few(reason for _, reason in skipped)
    if not seen:
        raise BankError(f"{bank.folder}: none of {len(samples)} samples can be audited: {reasons}")
    if skipped:
        logger.warning("audit: %d of %d left out: %s", len(skipped), len(samples), reasons)
    found = audit(
        bank,
        [sample.id for sample, _ in seen],
        [image for _, image in seen],
        sources=[sample.source for sample, _ in seen],
        texts=[sample.text for sample, _ in seen],
        queries=torch.cat(queries),
        keys=torch.cat(keys),
        k=k,
        near=near,
        device=vision.device,
    )
    return Audit(**{**vars(found), "skipped": tuple(skipped)})


def _keys(
    batch: Sequence[Prepared], vision: VisionEncoder, perceiver: Perceiver
) -> tuple[Tensor, Tensor]:
    """(queries, keys as entries), both (B, d_k) on the CPU."""
    features = encode(batch, vision)
    asked = [one.sample.instruction for one in batch]
    texts = [one.sample.text for one in batch]
    queries = perceiver.keys(features, asked).cpu()
    return queries, perceiver.entry_keys(features, asked, texts).cpu()


__getattr__, _names, _all = exports(
    __name__, {}, old={"NEAR": "tinyalign.vocabulary:NEAR_DUPLICATE"}
)
