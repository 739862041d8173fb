"""The neighbour table: for every training sample the rows it may use, found once, offline.

Keys come only from frozen parts, so the search need not run inside training: a table of N x K
rows and scores replaces it, and the data loader gathers values from the bank's memory map.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.log import progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.files import common_mode, replace_file
from tinyalign.memory.search.cycle import Cycle
from tinyalign.memory.search.index import Index, KeyIndex
from tinyalign.vocabulary import TrainingControl

FORMAT_VERSION = 2
BLOCK = 1024  # queries searched at a time


def data_hash(ids: Sequence[str], image_hashes: Sequence[str]) -> str:
    """Identity of the samples a table is for: their ids and images, in order."""
    return hash_json([list(ids), list(image_hashes)])


@dataclass(frozen=True)
class NeighbourTable:
    """Rows of a bank for each of N samples.

    No row of a sample ever holds the sample itself or another entry with the same image: that
    is true of the table that `build` searches, and of the controls made from it.
    """

    indices: Tensor
    """(N, K) int32, best first; -1 where there is none."""
    scores: Tensor
    """(N, K) fp32, inner product of query and key; 0 where there is none."""
    excluded: list[list[int]]
    """The bank rows that each sample must not get, sorted."""
    bank_size: int
    """Rows of the bank."""
    bank_hash: str
    """Identity of the bank."""
    data_hash: str
    """Identity of the samples."""
    control: str = "search"
    """How the rows were chosen: "search", or a control and its seed, such as
    "random seed 0"."""
    removed: tuple[int, ...] = ()
    """Rows of the bank that no sample may get, because their entries were removed; sorted."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def k(self) -> int:
        """K, the rows kept for each sample; training may use fewer."""
        return self.indices.shape[1]

    @property
    def mask(self) -> Tensor:
        """(N, K) bool: where there is a neighbour."""
        return self.indices >= 0

    @classmethod
    def build(
        cls,
        bank: MemoryBank,
        queries: Tensor,
        ids: Sequence[str],
        image_hashes: Sequence[str],
        k: int,
        *,
        exclude_self: bool = True,
        device: str | torch.device = "cpu",
        block: int = BLOCK,
        partial: str | Path | None = None,
        index: Index | None = None,
    ) -> NeighbourTable:
        """Search the k best rows for each query (N, d_k), exactly, in blocks, with a bar.

        partial: a folder for finished blocks, from which a search that was killed goes on; the
        blocks are removed at the end, and the folder if nothing else is in it. index: searches
        the bank, where one was made before; the table is as exact as it is.

        ids and image_hashes name the N samples: entries with the same id or the same image are
        left out of a sample's neighbours. exclude_self=False is for a bank that cannot hold the
        samples, such as evaluation against a training bank whose overlap is to be measured.
        """
        if not len(queries) == len(ids) == len(image_hashes):
            raise ConfigError(
                f"{len(queries)} queries, {len(ids)} ids and {len(image_hashes)} image hashes; "
                "a neighbour table needs one of each for every sample"
            )
        excluded = [
            bank.rows_of([name], [image] if image else []) if exclude_self else []
            for name, image in zip(ids, image_hashes)
        ]
        removed = tuple(bank.removed.tolist())
        asked = data_hash(ids, image_hashes)
        blocks = _Blocks(partial, [bank.hash, removed, asked, hash_tensors({"q": queries}), k])
        index = index or KeyIndex(bank, device, engine="exact")
        found: list[tuple[Tensor, Tensor]] = []
        with progress("Searching neighbours", len(queries)) as advance:
            for start in range(0, len(queries), block):
                part, banned = queries[start : start + block], excluded[start : start + block]
                found.append(blocks.get(start, len(part)) or index.topk(part, k, banned))
                blocks.put(start, found[-1])
                advance(len(part))
        blocks.clear()
        nothing = (torch.empty(0, k, dtype=torch.int64), torch.empty(0, k))
        indices, scores = (torch.cat(parts) for parts in zip(nothing, *found))
        return cls(
            indices.to(torch.int32), scores, excluded, bank.rows, bank.hash, asked,
            removed=removed,
        )  # fmt: skip

    # -- controls -----------------------------------------------------------------------------

    def random(self, seed: int) -> NeighbourTable:
        """The random-neighbour control: rows drawn evenly from those a sample may get.

        As many a sample as the search gave it, none twice. The scores stay those of the search
        by rank, so that the control differs in which memories are shown and in nothing else.
        """
        rng = np.random.default_rng(seed)

        def draw(row: int, wanted: int) -> list[int]:
            return _draw(rng, wanted, self.bank_size, self._banned(row))

        return self._redrawn(draw, f"random seed {seed}")

    def another_sample(self, seed: int) -> NeighbourTable:
        """The control in which each sample gets the neighbours of another sample.

        So every memory is shown about as often as in the true table, to the wrong sample. What
        the sample must not see is replaced by random rows. Scores stay as in `random`.
        """
        rng = np.random.default_rng(seed)
        circle = rng.permutation(len(self))
        partner = np.empty(len(self), dtype=np.int64)
        partner[circle] = np.roll(circle, -1)  # one round trip: nobody is its own partner

        def draw(row: int, wanted: int) -> list[int]:
            banned = set(self._banned(row))
            others = [i for i in self.indices[int(partner[row])].tolist() if i >= 0]
            kept = [i for i in others if i not in banned][:wanted]
            out = sorted(banned | set(kept))
            return kept + _draw(rng, wanted - len(kept), self.bank_size, out)

        return self._redrawn(draw, f"another_sample seed {seed}")

    def shuffled(self, seed: int) -> NeighbourTable:
        """The shuffled control: what is found is shown with the value of another entry.

        As `ShuffledBank` of evaluation: one cycle through the bank says whose. Where a sample must
        not see that one, the next on the cycle is taken. Scores stay as in `random`.
        """
        live = np.setdiff1d(np.arange(self.bank_size), self.removed)
        cycle = Cycle(live, self.bank_size, seed)

        def draw(row: int, wanted: int) -> list[int]:
            banned = set(self._banned(row))
            found = self.indices[row, :wanted].tolist()
            return [cycle.next(at, banned) for at in found]

        return self._redrawn(draw, f"shuffled seed {seed}")

    def under(self, control: TrainingControl, seed: int) -> NeighbourTable:
        """The table as a recipe's control has it; itself where the control is of another kind."""
        if control == "random":
            return self.random(seed)
        if control == "shuffled":
            return self.shuffled(seed)
        return self.another_sample(seed) if control == "another_sample" else self

    def _banned(self, row: int) -> list[int]:
        """The rows that a sample must not get, sorted."""
        return sorted({*self.excluded[row], *self.removed})

    def _redrawn(self, draw: Callable[[int, int], list[int]], control: str) -> NeighbourTable:
        indices = torch.full_like(self.indices, -1)
        counts = self.mask.sum(dim=1).tolist()
        for row, wanted in enumerate(counts):
            indices[row, :wanted] = torch.tensor(draw(row, wanted), dtype=torch.int32)
        return replace(self, indices=indices, control=control)

    # -- on disk ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, in one step; its header says what it was made for."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = torch.tensor([len(rows) for rows in self.excluded], dtype=torch.int32)
        flat = torch.tensor([r for rows in self.excluded for r in rows], dtype=torch.int32)
        tensors = {
            "indices": self.indices.contiguous(),
            "scores": self.scores.contiguous(),
            "excluded_counts": counts,
            "excluded_rows": flat,
        }
        header = {
            "format_version": FORMAT_VERSION,
            "bank_size": self.bank_size,
            "bank_hash": self.bank_hash,
            "data_hash": self.data_hash,
            "control": self.control,
            "removed": self.removed,
        }
        aside = path.with_name(f"{path.name}.tmp")
        save_file(tensors, aside, metadata={"neighbours": json.dumps(header)})
        common_mode(aside)
        replace_file(aside, path)

    @classmethod
    def load(
        cls, path: str | Path, *, bank_hash: str | None = None, data_hash: str | None = None
    ) -> NeighbourTable:
        """Read a table; with `bank_hash` or `data_hash`, refuse one made for others.

        Raises BankError naming the file when it is missing, damaged, newer, or stale.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["neighbours"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (version := header.pop("format_version")) != FORMAT_VERSION:
                raise BankError(
                    f"{path}: of format {version}, this TinyAlign reads {FORMAT_VERSION}; "
                    "search the neighbours again"
                )
            counts, flat = tensors.pop("excluded_counts"), tensors.pop("excluded_rows")
            excluded = (
                [rows.tolist() for rows in flat.split(counts.tolist())] if len(counts) else []
            )
            removed = tuple(header.pop("removed"))
            table = cls(excluded=excluded, removed=removed, **tensors, **header)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BankError(f"{path}: not a readable neighbour table ({error})") from error
        for what, wanted, found in (
            ("bank", bank_hash, table.bank_hash),
            ("data", data_hash, table.data_hash),
        ):
            if wanted is not None and wanted != found:
                raise BankError(
                    f"{path}: made for another {what} (hash {found}, this one is {wanted}); "
                    "search the neighbours again"
                )
        return table


class _Blocks:
    """Finished blocks of a search, one file each, so that a killed one need not start over."""

    def __init__(self, folder: str | Path | None, decides: list[object]) -> None:
        """folder: None keeps nothing. decides: what a block must have been searched for."""
        self.folder = None if folder is None else Path(folder) / hash_json(decides)

    def get(self, start: int, size: int) -> tuple[Tensor, Tensor] | None:
        """The block that starts at `start`, if it was finished."""
        if self.folder is None or not (path := self.folder / f"{start}.safetensors").is_file():
            return None
        try:
            found = load_file(path)
            whole = len(found["scores"]) == len(found["indices"]) == size
        except (OSError, SafetensorError, KeyError):
            whole = False
        if not whole:
            path.unlink()  # damaged: search it again
            return None
        return found["indices"], found["scores"]

    def put(self, start: int, block: tuple[Tensor, Tensor]) -> None:
        """Keep a finished block."""
        if self.folder is None or (path := self.folder / f"{start}.safetensors").is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        save_file({"indices": block[0].contiguous(), "scores": block[1].contiguous()}, aside)
        replace_file(aside, path)

    def clear(self) -> None:
        """The table is whole: the blocks are not needed any more."""
        if self.folder is not None and self.folder.is_dir():
            shutil.rmtree(self.folder)
            with suppress(OSError):  # others' blocks are in it
                self.folder.parent.rmdir()


def _draw(rng: np.random.Generator, n: int, size: int, excluded: Sequence[int]) -> list[int]:
    """n different rows below `size`, evenly among those not in `excluded` (sorted)."""
    rows = rng.choice(size - len(excluded), size=n, replace=False)
    for row in excluded:  # step over each excluded row, lowest first
        rows = rows + (rows >= row)
    return [int(row) for row in rows]
