"""What a run's bank knows of its held-out data, said in the log before training.

Images and ids of all samples are compared, which costs next to nothing. Self-hits and entries of
almost the same key need a search; of a large data set it is made for a draw of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyalign.data.sample import Sample
from tinyalign.log import logger
from tinyalign.memory.audit import Audit, audit
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.perceiver import Perceiver
from tinyalign.training.caches.features import Features

SEARCHED = 1000
"""Samples that are searched for, at most."""
BATCH = 64
"""Samples whose keys are made at once."""


def say_overlap(
    bank: MemoryBank,
    samples: Sequence[Sample],
    features: Features,
    *,
    k: int,
    seed: int,
    device: str | torch.device = "cpu",
) -> None:
    """Log the overlap of held-out samples with the bank; an id counts with the same source alone.

    k: memories that the model is shown, for self-hits among the k best. seed: of the draw of
    at most `SEARCHED` samples with an image.
    """
    everything, drawn = list(range(len(samples))), _drawn(features, seed)
    if drawn != everything:
        found = _compare(bank, samples, features, everything)
        logger.info("held-out data in the bank: %s", found.summary())
    if drawn:
        queries, keys = _keys(bank, samples, features, drawn)
        found = _compare(
            bank, samples, features, drawn, queries=queries, keys=keys, k=k, device=device
        )
        logger.info(
            "held-out data in the bank%s: %s", _which(features, drawn, seed), found.summary()
        )


def _which(features: Features, drawn: Sequence[int], seed: int) -> str:
    """The samples that were searched for, in words; "" for all."""
    with_image = len(_with_image(features))
    if len(drawn) < with_image:
        return f", {len(drawn)} of {with_image} drawn with seed {seed}"
    return f", the {with_image} with an image" if with_image < len(features) else ""


def _with_image(features: Features) -> list[int]:
    return [i for i in features.usable() if features.rows[i]]


def _drawn(features: Features, seed: int) -> list[int]:
    """At most `SEARCHED` of the samples with an image, in order."""
    seen = _with_image(features)
    if len(seen) <= SEARCHED:
        return seen
    return sorted(np.random.default_rng(seed).choice(seen, SEARCHED, replace=False).tolist())


def _compare(
    bank: MemoryBank, samples: Sequence[Sample], features: Features, rows: Sequence[int], **how: Any
) -> Audit:
    """The audit of some of the samples; how: as `audit` takes it."""
    some, hashes = [samples[i] for i in rows], features.image_hashes()
    ids, sources = [one.id for one in some], [one.source for one in some]
    return audit(bank, ids, [hashes[i] for i in rows], sources=sources, **how)


def _keys(
    bank: MemoryBank, samples: Sequence[Sample], features: Features, rows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(queries, keys as entries), both (len(rows), d_k), of samples with an image."""
    perceiver = Perceiver.load(bank.perceiver_folder)
    queries, keys = [], []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        seen, some = features.batch(batch), [samples[i] for i in batch]
        asked = [one.instruction for one in some]
        queries.append(perceiver.keys(seen, asked).cpu())
        keys.append(perceiver.entry_keys(seen, asked, [one.text for one in some]).cpu())
    return torch.cat(queries), torch.cat(keys)
