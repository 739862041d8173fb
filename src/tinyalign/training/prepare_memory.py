"""Preparing the memory of a run: Perceiver, bank, neighbour tables; each made once and reused.

All three lie in the cache folder under names that hash what decides them, so that runs which
agree on these share them, whatever else they differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tinyalign.data.sample import Sample
from tinyalign.errors import BankError
from tinyalign.hashing import hash_json
from tinyalign.log import logger
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.manifest import FORMAT_VERSION
from tinyalign.memory.building.builder import Share, build_bank, dataset_hash
from tinyalign.memory.perceiver import Compressor, load_compressor
from tinyalign.memory.search.neighbours import NeighbourTable, data_hash
from tinyalign.memory.search.retriever import check_encoder
from tinyalign.training.caches.features import FeatureCache, Features, FeatureSource
from tinyalign.training.machine.launch import is_first
from tinyalign.training.overlap import say_overlap
from tinyalign.training.perceiver.train import REPORT, train_compressor
from tinyalign.training.recipe.recipe import DataArgs, MemoryArgs, Recipe
from tinyalign.training.recipe.sources import compressor_samples, memory_samples

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

    def compressor(self) -> Compressor:
        """The Perceiver named in the recipe, or the one trained on the recipe's pairs."""
        if self.memory.compressor is not None and self._trained:
            return Compressor.load(self.memory.compressor)
        samples = compressor_samples(self.memory, self.data.pretrain, strict=self.data.strict)
        decides = [
            self.features.encoder.hash,
            self.features.precision,
            dataset_hash(samples),
            asdict(self.memory.compress),
            [self.memory.key, self.memory.alpha, self.memory.seed, self._trained],
        ]
        folder = self.folder / "compressors" / hash_json(decides)
        if (folder / REPORT).is_file():  # written last
            logger.info("perceiver: from %s", folder)
            return Compressor.load(folder)
        return train_compressor(
            samples,
            self._covered(samples),
            folder,
            self.memory.compress,
            key=self.memory.key,
            alpha=self.memory.alpha,
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
        if self.memory.bank is not None:
            bank = MemoryBank.open(self.memory.bank)
            check_encoder(bank, self.features.encoder.hash)
            return bank
        samples = memory_samples(self.memory, self.data.pretrain, strict=self.data.strict)
        compressor = self.compressor()
        decides = [
            self.features.encoder.hash,
            self.features.precision,
            dataset_hash(samples),
            compressor.hash,
            compressor.key_function.hash,
            self.memory.keys_dtype,
            self.memory.values_dtype,
            FORMAT_VERSION,
        ]
        built = build_bank(
            samples,
            self.features.encoder,
            compressor.to(self.device),
            self.folder / "banks" / hash_json(decides),
            features=self._kept(samples),
            vision_name=self.recipe.model.vision,
            strict=self.data.strict,
            keys_dtype=self.memory.keys_dtype,
            values_dtype=self.memory.values_dtype,
            workers=self.data.workers,
            share=Share(),
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
        if held_out and is_first():
            k, seed = max(1, self.memory.k), self.memory.seed
            say_overlap(bank, samples, features, k=k, seed=seed, device=self.device)
        seed = self.memory.seed + int(held_out)
        if self.memory.control == "random_neighbours":
            return table.random(seed)
        if self.memory.control == "shuffled_values":
            return table.shuffled(seed)
        return table

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
        k = max(self.memory.neighbours, self.memory.k)
        asked = data_hash(ids, image_hashes)
        name = hash_json([bank.hash, asked, instructions, k, self.features.precision])
        path = self.folder / "neighbours" / f"{name}.safetensors"
        if path.is_file():
            try:
                return NeighbourTable.load(path, bank_hash=bank.hash, data_hash=asked)
            except BankError as error:
                logger.warning("neighbours: %s; searched again", error)
        compressor = load_compressor(bank)
        # Held-out images had no part in fitting the keys: they need no leaving out.
        known = None if held_out else image_hashes
        queries = query_keys(compressor, features, instructions, known)
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


def query_keys(
    compressor: Compressor,
    features: Features,
    instructions: Sequence[str],
    image_hashes: Sequence[str] | None = None,
    block: int = 64,
) -> torch.Tensor:
    """Queries (N, d_k) from each sample's image and its instruction; zeros without image.

    image_hashes: those of training samples, whose own text must have no part in their query.
    """
    queries = torch.zeros(len(features), compressor.key_function.dim)
    seen = [i for i in features.usable() if features.rows[i]]
    for start in range(0, len(seen), block):
        rows = seen[start : start + block]
        texts = [instructions[i] for i in rows]
        hashes = None if image_hashes is None else [image_hashes[i] for i in rows]
        queries[rows] = compressor.keys(features.batch(rows), texts, hashes).cpu()
    return queries
