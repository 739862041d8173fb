"""What the page asks of a bank, answered as plain values that become JSON."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyalign.errors import ConfigError, TinyAlignError
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.search.retriever import Retriever, are_related, check_encoder
from tinyalign.serving.browse.keymap import KeyMap, cluster_names, key_map, methods
from tinyalign.serving.browse.pictures import Pictures

if TYPE_CHECKING:
    from tinyalign.model.backbones.vision import VisionEncoder

PAGE_SIZE = 60
MOST_HITS = 200
DRAWN_SOURCES = 10
"""Sources with a colour of their own on the map; the rest share the last one."""


class NotThereError(TinyAlignError):
    """An entry, page or picture that the bank does not have, or no longer has."""


class RenumberedError(TinyAlignError):
    """A row of a bank that was compacted since: it is another entry's now."""


class BankView:
    """A bank as the page sees it. Any thread may ask; models are loaded when they are needed."""

    def __init__(
        self,
        bank: MemoryBank,
        pictures: Pictures,
        *,
        vision_name: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """vision_name: the encoder for image searches; by default the one the bank names."""
        self.bank, self.pictures, self.device = bank, pictures, torch.device(device)
        self.vision_name = vision_name or bank.manifest.vision_name
        self._lock = threading.RLock()  # of the bank and of what is read from it
        self._loading = threading.Lock()
        self._drawing = threading.Lock()
        self._retriever: Retriever | None = None
        self._vision: VisionEncoder | None = None
        self._maps: dict[tuple, dict[str, Any]] = {}

    # -- the bank, page by page ---------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the head of the page says. Also shows what was added since it was last asked."""
        with self._lock:
            self.bank.refresh()
            manifest = self.bank.manifest
            return {
                "name": self.bank.folder.resolve().name,
                "count": len(self.bank),
                "generation": manifest.generation,
                "sources": self._sources(),
                "key_kind": manifest.key_kind,
                "key_dim": manifest.key_dim,
                "vision": self.vision_name,
                "vision_loaded": self._vision is not None,
                "page_size": PAGE_SIZE,
                "map_methods": methods(),
            }

    def page(self, number: int, sources: Sequence[str] = (), newest: bool = False) -> dict:
        """Page `number` (from 1) of the entries, in the order they were added or backwards."""
        with self._lock:
            rows = self._allowed(sources)
            rows = self.bank.live if rows is None else rows
            rows = rows[::-1] if newest else rows
            pages = max(1, -(-len(rows) // PAGE_SIZE))
            if not 1 <= number <= pages:
                raise NotThereError(f"there is no page {number}; the last one is {pages}")
            shown = rows[(number - 1) * PAGE_SIZE : number * PAGE_SIZE].tolist()
            found = self.bank.entries.at(shown)
            entries = [self._shown(row, found[row]) for row in shown]
            return {"page": number, "pages": pages, "total": len(rows), "entries": entries}

    def entry(self, entry_id: str) -> dict[str, Any]:
        """One entry by its id. NotThereError where the bank has none of that id."""
        with self._lock:
            row = self._row(entry_id)
            return self._shown(row, self.bank.entry(row))

    def entry_at(self, row: int, generation: int) -> dict[str, Any]:
        """One entry by its row. RenumberedError where the bank is of another generation by now."""
        with self._lock:
            if generation != self.bank.manifest.generation:
                raise RenumberedError("the bank was compacted meanwhile; load the page again")
            if not 0 <= row < self.bank.rows or row in self.bank.removed:
                raise NotThereError(f"row {row} is not in the bank")
            return self._shown(row, self.bank.entry(row))

    def picture(self, image_hash: str, size: str) -> bytes:
        """The picture that entries with this hash remember, as JPEG. NotThereError without one."""
        with self._lock:
            rows = self.bank.rows_of(image_hashes=[image_hash])
            rows = np.setdiff1d(rows, self.bank.removed).astype(np.int64).tolist()
            candidates = tuple(self.bank.entries.at(rows).values())
        found = self.pictures.jpeg(size, image_hash, candidates) if candidates else None
        if found is None:
            raise NotThereError("no picture of this entry was found, or it is no longer the same")
        return found

    # -- finding ------------------------------------------------------------------------------

    def search(
        self, image: Image.Image | None, text: str | None, k: int, sources: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The k entries nearest to an image, a text, or both, as a model's query finds them."""
        _check_k(k)
        if image is None and not text:
            raise ConfigError("nothing to search by; give words, an image, or both")
        features = None if image is None else self._features(image)
        retriever = self._search_engine()
        with self._lock:
            self._allowed(sources)
            hits = retriever.search(
                text=text or None, features=features, k=k, sources=sources or None
            )
            found = [self._shown(hit.row, hit.entry, hit.score) for hit in hits]
        return {"entries": found, "unrelated": not are_related(hits)}

    def neighbours(
        self, entry_id: str, k: int, sources: Sequence[str] = (), other_images: bool = False
    ) -> dict[str, Any]:
        """The k entries whose stored keys are nearest to this entry's key, itself left out.

        other_images: also leave out entries that show the same picture.
        """
        _check_k(k)
        index = self._search_engine().index
        with self._lock:
            row = self._row(entry_id)
            query = torch.from_numpy(np.array(self.bank.keys[row], dtype=np.float32))
            excluded = [row]
            if other_images:
                excluded = self.bank.rows_of(image_hashes=[self.bank.entry(row).image_hash])
            indices, scores = index.topk(query[None], k, [excluded], self._allowed(sources))
            rows = [found for found in indices[0].tolist() if found >= 0]
            entries = self.bank.entries.at(rows)
            pairs = zip(rows, scores[0].tolist())
            return {"entries": [self._shown(r, entries[r], score) for r, score in pairs]}

    # -- the map ------------------------------------------------------------------------------

    def map(self, method: str = "pca") -> dict[str, Any]:
        """Points of the key space with their colours; arrays in base64, little-endian."""
        with self._drawing:
            with self._lock:
                state = (self.bank.hash, len(self.bank.removed), method)
                keys, live = self.bank.keys, self.bank.live
                generation = self.bank.manifest.generation
                counts, all_sources = self._sources(), self.bank.sources
                texts = self.bank.texts
            if state not in self._maps:
                drawn = key_map(keys, live, method)
                names = cluster_names([texts[row] for row in drawn.rows], drawn.clusters)
                made = _packed(drawn, [all_sources[row] for row in drawn.rows], list(counts))
                made |= {"clusters": names, "total": len(live), "method": method}
                self._maps = {s: m for s, m in self._maps.items() if s[:2] == state[:2]}
                self._maps[state] = made | {"generation": generation}
            return self._maps[state]

    # -- within -------------------------------------------------------------------------------

    def _row(self, entry_id: str) -> int:
        rows = np.setdiff1d(self.bank.rows_of(ids=[entry_id]), self.bank.removed)
        if not len(rows):
            raise NotThereError(f"no entry {entry_id!r} in the bank; it may have been removed")
        return int(rows[0])

    def _shown(self, row: int, entry: Entry, score: float | None = None) -> dict[str, Any]:
        picture = self.pictures.may_have(entry)
        return {"row": row, "score": score, "picture": picture, **asdict(entry)}

    def _sources(self) -> dict[str, int]:
        """Entries of each source, the largest first."""
        sources = self.bank.sources
        counts = Counter(sources[row] for row in self.bank.live.tolist())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _allowed(self, sources: Sequence[str]) -> np.ndarray | None:
        if not sources:
            return None
        known = self.bank.entries.sources()
        if unknown := sorted(set(sources) - set(known)):
            raise NotThereError(
                f"no entry came from {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return self.bank.rows_from(sources)

    def _search_engine(self) -> Retriever:
        with self._loading:
            if self._retriever is None:
                self._retriever = Retriever.open(self.bank, MOST_HITS, device=str(self.device))
            return self._retriever

    def _features(self, image: Image.Image) -> Tensor:
        """Vision features (n, D) of an image; the first one waits for the encoder."""
        with self._loading:
            if self._vision is None:
                self._vision = self._load_vision()
            return self._vision.encode([image])[0]

    def _load_vision(self) -> VisionEncoder:
        from tinyalign.model.backbones.vision import VisionEncoder

        if not self.vision_name:
            raise ConfigError(
                "the bank does not say its vision encoder, so it cannot be searched by image; "
                "name it with --vision when you start the page"
            )
        logger.info("loading the vision encoder %s, for the first image", self.vision_name)
        vision = VisionEncoder.load(self.vision_name, dtype=torch.bfloat16)
        check_encoder(self.bank, vision.hash)
        vision.tower.to(self.device)
        return vision


def _check_k(k: int) -> None:
    if not 1 <= k <= MOST_HITS:
        raise ConfigError(f"k must be from 1 to {MOST_HITS}, found {k}")


def _packed(drawn: KeyMap, sources: Sequence[str], order: Sequence[str]) -> dict[str, Any]:
    """A map's arrays as the page reads them: uint16 places, uint32 rows, uint8 groups."""
    own = order if len(order) <= DRAWN_SOURCES else order[: DRAWN_SOURCES - 1]
    names = [*own, *(["other sources"] if len(own) < len(order) else [])]
    place = {name: i for i, name in enumerate(own)}
    by_source = [place.get(name, len(own)) for name in sources]
    arrays = {
        "xy": np.rint(drawn.xy * 65_535).astype("<u2"),
        "rows": drawn.rows.astype("<u4"),
        "cluster": drawn.clusters.astype(np.uint8),
        "source": np.asarray(by_source, dtype=np.uint8),
    }
    packed = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    return {
        "points": len(drawn.rows),
        **packed,
        "sources": names,
        "explained": drawn.explained,
    }
