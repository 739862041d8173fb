"""From `data.cache` to the source of a run's features; "auto" is decided once a run.

The choice is noted in a file of the run: both stages, every process and a resumed run use the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from filelock import FileLock

from tinyalign.data.sample import ImageRef, Sample
from tinyalign.log import logger
from tinyalign.memory.bank.files import write_atomically
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.features import FeatureCache, FeatureSource, LiveFeatures
from tinyalign.training.caches.image_index import reference
from tinyalign.training.caches.pixels import PixelCache
from tinyalign.training.caches.plan import (
    CacheKind,
    CacheNeed,
    CachePlan,
    CacheProbe,
    free_bytes,
    measure,
    plan_cache,
)
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import open_source
from tinyalign.training.recipe.stage import StageArgs

ASKED = 64
"""Images that are asked for in an index, to estimate the share that is there."""
MEMORY_PASSES = 3.0
"""Perceiver, bank and queries each see an image once."""


def feature_source(
    kind: CacheKind, folder: Path, encoder: VisionEncoder, recipe: Recipe
) -> FeatureSource:
    """Where features come from with this kind of cache."""
    if kind == "features":
        return FeatureCache(folder, encoder, recipe.data.cache_dtype)
    if kind == "pixels":
        return PixelCache(folder, encoder)
    return LiveFeatures(folder, encoder)


def choose_source(
    recipe: Recipe, note: Path, cache_folder: Path, encoder: VisionEncoder
) -> FeatureSource:
    """The source that `data.cache` names; "auto" as the file `note` has it, or decided now."""
    kind = recipe.data.cache
    if kind == "auto":
        kind = _decided(recipe, note, cache_folder, encoder)
    return feature_source(kind, cache_folder, encoder, recipe)


def _decided(recipe: Recipe, note: Path, cache_folder: Path, encoder: VisionEncoder) -> CacheKind:
    note.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(note.with_name(f"{note.name}.lock")):
        if note.is_file():
            return json.loads(note.read_text(encoding="utf-8"))["chosen"]
        plan = plan_run(recipe, cache_folder, encoder)
        for line in plan.lines():
            logger.info("%s", line)
        write_atomically(note, json.dumps(asdict(plan), indent=2).encode())
    return plan.chosen


def plan_run(recipe: Recipe, cache_folder: Path, encoder: VisionEncoder) -> CachePlan:
    """The plan for a recipe: its images counted, a few of them timed.

    Data that stream have no size that is known before; nothing is kept of their images.
    """
    if any(source.streaming for source, _ in _sources(recipe)):
        return CachePlan((), "none", "the data stream, and how many images come nobody knows")
    images: dict[tuple[str | None, int], ImageRef] = {}
    uses = 0.0
    for source, stage in _sources(recipe):
        samples = open_source(source, recipe.seed)
        found = {_name(ref): ref for ref in _refs(samples)}
        uses += len(found) * _passes(recipe, source, stage, len(samples))
        images |= found
    refs = list(images.values())
    if not refs:
        return CachePlan((), "none", "no sample has an image")
    features = FeatureCache(cache_folder, encoder, recipe.data.cache_dtype)
    pixels = PixelCache(cache_folder, encoder)
    need = CacheNeed(
        images=len(refs),
        passes=uses / len(refs),
        trains_vision=trains_vision(recipe),
        feature_bytes=features.row_bytes,
        pixel_bytes=pixels.rows.row_bytes,
        free_bytes=free_bytes(cache_folder),
        features_there=_share_there(features, refs),
        pixels_there=_share_there(pixels, refs),
    )
    return plan_cache(need, _probe(need, encoder, refs))


def trains_vision(recipe: Recipe) -> bool:
    """Whether a stage that the recipe has data for trains the tower."""
    stages = [stage for _, stage in _sources(recipe)]
    return any(stage.vision == "full" for stage in stages)


def _probe(need: CacheNeed, encoder: VisionEncoder, refs: Sequence[ImageRef]) -> CacheProbe:
    if need.features_there == 1.0 and not need.trains_vision:
        return CacheProbe(0.0, 1e-2)  # all there: nothing to be measured, features win
    return measure(encoder, list(islice(_spread(refs), 3 * ASKED)))


def _sources(recipe: Recipe) -> Iterator[tuple[DataSource, StageArgs]]:
    data = recipe.data
    stages: list[tuple[DataSource | None, StageArgs]] = [
        (data.pretrain, recipe.pretrain),
        (data.pretrain_eval, recipe.pretrain),
        (data.finetune, recipe.finetune),
        (data.finetune_eval if data.finetune is not None else None, recipe.finetune),
    ]
    for source, stage in stages:
        if source is not None:
            yield source, stage


def _passes(recipe: Recipe, source: DataSource, stage: StageArgs, n_samples: int) -> float:
    """How often a run needs each image of a source."""
    memory = MEMORY_PASSES if recipe.memory.reads_bank else 0.0
    if source in (recipe.data.pretrain, recipe.data.finetune):
        epochs = stage.epochs
        if stage.max_steps is not None:
            epochs = stage.max_steps * stage.batch_size / max(1, n_samples)
        return epochs + memory
    return len(stage.eval_fractions) + memory / MEMORY_PASSES


def _refs(samples: Sequence[Sample]) -> Iterator[ImageRef]:
    for sample in samples:
        yield from sample.images


def _name(ref: ImageRef) -> tuple[str | None, int]:
    """Enough to tell images of one data set apart, without hashing them."""
    return ref.path, -1 if ref.data is None else len(ref.data)


def _spread(refs: Sequence[ImageRef]) -> Iterator[ImageRef]:
    """Images from everywhere in the list, the first one first."""
    step = max(1, len(refs) // ASKED)
    for start in range(step):
        yield from refs[start::step]


def _share_there(source: FeatureSource, refs: Sequence[ImageRef]) -> float:
    if not source.index.path.is_file():
        return 0.0
    asked = [reference(ref) for ref in islice(_spread(refs), ASKED)]
    return len(source.index.rows_of_refs(asked)) / len(set(asked))
