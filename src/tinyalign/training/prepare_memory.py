"""Preparing the memory of a run: Perceiver, bank, neighbour tables; each made once and reused.

All three lie in the cache folder under names that hash what decides them, so that runs which
agree on these share them, whatever else they differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tinyalign.data.sample import Sample
from tinyalign.errors import BankError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.manifest import FORMAT_VERSION
from tinyalign.memory.building.builder import BuildPart, build_bank, dataset_hash
from tinyalign.memory.perceiver import Perceiver, load_perceiver
from tinyalign.memory.search.neighbours import NeighbourTable, data_hash
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.reordering import chosen_ranker, reordered
from tinyalign.memory.search.retriever import check_encoder
from tinyalign.training.caches.features import FeatureCache, Features, FeatureSource
from tinyalign.training.caches.query_keys import query_keys
from tinyalign.training.machine.launch import is_first
from tinyalign.training.overlap import say_overlap
from tinyalign.training.perceiver.train import REPORT, train_perceiver
from tinyalign.training.recipe.data import DataArgs
from tinyalign.training.recipe.memory import MemoryArgs
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import memory_samples, perceiver_samples

CACHED = "compressors"
"""The cache's folder of Perceivers, by the name that it has had from the start."""
EXCLUDE_NOTHING = "\x00"  # no sample is called so


class MemoryPreparer:
    """Makes or finds what a recipe's memory needs, with one encoder and one cache folder."""

    def __init__(self, recipe: Recipe, features: FeatureSource, folder: Path) -> None:
        self.recipe = recipe
        self.memory: MemoryArgs = recipe.memory
        self.data: DataArgs = recipe.data
        self.features = features
        self.folder = folder
        self.device = features.encoder.device
        self.ranker: Ranker | None = None
        """How memories are chosen among neighbours; known once the first table is made."""

    def perceiver(self) -> Perceiver:
        """The Perceiver named in the recipe, or the one trained on the recipe's pairs."""
        if self.memory.perceiver.path is not None and self._trained:
            return Perceiver.load(self.memory.perceiver.path)
        samples = perceiver_samples(self.memory, self.data.pretrain, strict=self.data.strict)
        decides = [
            self.features.encoder.hash,
            self.features.precision,
            dataset_hash(samples),
            asdict(self.memory.perceiver.training),
            [self.memory.key.kind, self.memory.key.alpha, self.memory.seed, self._trained],
        ]
        folder = self.folder / CACHED / hash_json(decides)
        if (folder / REPORT).is_file():  # written last
            logger.info("perceiver: from %s", folder)
            return Perceiver.load(folder)
        return train_perceiver(
            samples,
            self._covered(samples),
            folder,
            self.memory.perceiver.training,
            key=self.memory.key.kind,
            alpha=self.memory.key.alpha,
            seed=self.memory.seed,
            device=self.device,
            trained=self._trained,
        )

    @property
    def _trained(self) -> bool:
        return self.memory.control != "untrained_perceiver"

    def bank(self) -> MemoryBank:
        """The bank named in the recipe, or one built from the recipe's pairs.

        Raises BankError if a bank named in the recipe was built with another vision encoder.
        """
        if self.memory.bank.path is not None:
            bank = MemoryBank.open(self.memory.bank.path)
            check_encoder(bank, self.features.encoder.hash)
            return bank
        samples = memory_samples(self.memory, self.data.pretrain, strict=self.data.strict)
        perceiver = self.perceiver()
        decides = [
            self.features.encoder.hash,
            self.features.precision,
            dataset_hash(samples),
            perceiver.hash,
            perceiver.key_function.hash,
            self.memory.bank.keys_dtype,
            self.memory.bank.values_dtype,
            FORMAT_VERSION,
        ]
        built = build_bank(
            samples,
            self.features.encoder,
            perceiver.to(self.device),
            self.folder / "banks" / hash_json(decides),
            features=self._kept(samples),
            vision_name=self.recipe.model.vision,
            strict=self.data.strict,
            keys_dtype=self.memory.bank.keys_dtype,
            values_dtype=self.memory.bank.values_dtype,
            workers=self.data.workers,
            share=BuildPart(),
        )
        return built.bank

    def _kept(self, samples: Sequence[Sample]) -> Features | None:
        """Features from the cache; None where none are kept, the builder then makes its own."""
        if isinstance(self.features, FeatureCache):
            return self._covered(samples)
        return None

    def _covered(self, samples: Sequence[Sample]) -> Features:
        data = self.data
        return self.features.cover(samples, strict=data.strict, workers=data.workers)

    def neighbours(
        self,
        bank: MemoryBank,
        samples: Sequence[Sample],
        features: Features,
        *,
        held_out: bool = False,
    ) -> NeighbourTable:
        """The table of `samples`, as the recipe's control has it; own entries are excluded.

        held_out: samples of another split, whose ids may by chance be those of entries; only
        entries with the same image are excluded then.
        """
        table = self._search(bank, samples, features, held_out)
        table = self.ranked(table, bank, None if held_out else samples)
        if held_out and is_first():
            k, seed = max(1, self.memory.k), self.memory.seed
            say_overlap(bank, samples, features, k=k, seed=seed, device=self.device)
        seed = self.memory.seed + int(held_out)
        return table.under(self.memory.control, seed)

    def ranked(
        self, table: NeighbourTable, bank: MemoryBank, samples: Sequence[Sample] | None
    ) -> NeighbourTable:
        """The table with each sample's k memories first, as `memory.order` has it.

        How the neighbours are weighed is chosen once, on training samples: held-out ones come
        with None, and where no choice was made before, as when the data stream, none is made.
        """
        if self.ranker is None or self.ranker.bank.hash != bank.hash:
            ranker = Ranker(bank, self.memory.ranking)
            self.ranker = ranker if samples is None else self._chosen(ranker, table, samples)
        if self.memory.order == "similarity":
            return table
        decides = [table.bank_hash, table.data_hash, table.k, asdict(self.ranker.ranking)]
        name = hash_json([*decides, self.memory.k, hash_tensors({"rows": table.indices})])
        path = self.folder / "neighbours" / f"{name}.safetensors"
        if path.is_file():
            with suppress(BankError):  # damaged: order them again
                return NeighbourTable.load(path, bank_hash=bank.hash, data_hash=table.data_hash)
        found = reordered(table, self.ranker, self.memory.k)
        found.save(path)
        return found

    def _chosen(self, ranker: Ranker, table: NeighbourTable, samples: Sequence[Sample]) -> Ranker:
        """How neighbours are weighed: as the recipe says, or chosen on these samples."""
        if self.memory.temperature is not None:
            return ranker
        return chosen_ranker(ranker, table, samples, seed=self.memory.seed)

    def _search(
        self,
        bank: MemoryBank,
        samples: Sequence[Sample],
        features: Features,
        held_out: bool,
    ) -> NeighbourTable:
        ids = [EXCLUDE_NOTHING + sample.id if held_out else sample.id for sample in samples]
        image_hashes = features.image_hashes()
        instructions = [sample.instruction for sample in samples]
        k = self.memory.ranking.neighbours
        asked = data_hash(ids, image_hashes)
        name = hash_json([bank.hash, asked, instructions, k, self.features.precision])
        path = self.folder / "neighbours" / f"{name}.safetensors"
        if path.is_file():
            try:
                return NeighbourTable.load(path, bank_hash=bank.hash, data_hash=asked)
            except BankError as error:
                logger.warning("neighbours: %s; searched again", error)
        perceiver = load_perceiver(bank)
        # Held-out images had no part in fitting the keys: they need no leaving out.
        known = None if held_out else image_hashes
        queries = query_keys(perceiver, features, instructions, known)
        table = NeighbourTable.build(
            bank, queries, ids, image_hashes, k, device=self.device,
            partial=path.with_suffix(".partial"),
        )  # fmt: skip
        table.save(path)
        logger.info(
            "neighbours: %d for each of %d samples, %.1f MB, into %s",
            k, len(table), 8 * table.indices.numel() / 1e6, path,
        )  # fmt: skip
        return table
