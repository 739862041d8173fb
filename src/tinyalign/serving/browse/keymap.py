"""The key space of a bank on a plane: where entries lie, and which groups they fall into."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import ConfigError

POINTS = {"pca": 100_000, "umap": 10_000}
"""At most so many entries are drawn; of a larger bank, an even sample."""
UMAP_NEEDS = 10
FITTED = 20_000
"""Keys that the axes and the groups are fitted on."""
CLUSTERS = 10
CLUSTER_DIMS = 16
ROUNDS = 25
SEED = 0


@dataclass(frozen=True)
class KeyMap:
    """Points on a plane, and the group of each."""

    rows: np.ndarray
    """Rows of the bank (m,), int64, sorted."""
    xy: np.ndarray
    """Places (m, 2), float32, each axis from 0 to 1 over the larger extent."""
    clusters: np.ndarray
    """Group of each point (m,), int64."""
    explained: float | None
    """Share of the keys' variance that the plane shows; None for UMAP."""


def methods() -> list[str]:
    """The projections that can be had here; UMAP needs the package `umap-learn`."""
    return ["pca", "umap"] if importlib.util.find_spec("umap") else ["pca"]


def key_map(keys: np.ndarray, live: np.ndarray, method: str = "pca") -> KeyMap:
    """Map the keys (rows, d) of the rows `live` (int64). Deterministic.

    Raises ConfigError for a method that is unknown or not installed.
    """
    if method not in methods():
        raise ConfigError(
            f"map method {method!r}: expected one of {methods()}; UMAP needs `pip install "
            "umap-learn`"
        )
    rows = _even_sample(live, POINTS[method])
    if not len(rows):
        return KeyMap(rows, np.zeros((0, 2), np.float32), rows, None)
    components = _principal(torch.from_numpy(keys[_even_sample(rows, FITTED)]).float())
    projected, total = _project(keys, rows, components)
    clusters = _clusters(projected)
    if method == "umap":
        return KeyMap(rows, _unit_square(_umap(keys[rows])), clusters.numpy(), None)
    explained = float(projected[:, :2].var(dim=0, correction=0).sum()) / total if total else 1.0
    return KeyMap(rows, _unit_square(projected[:, :2]), clusters.numpy(), explained)


def cluster_names(texts: Sequence[str], clusters: np.ndarray, most: int = 3) -> list[str]:
    """For each cluster the words that mark it: more frequent in its texts than in all m texts.

    A word's weight is p log(p / q), with p its share of the cluster's texts and q of all texts.
    """
    held = [set(re.findall(r"[^\W\d_]{3,}", text.lower())) for text in texts]
    overall = Counter(word for words in held for word in words)
    names = []
    for cluster in range(int(clusters.max(initial=-1)) + 1):
        inside = [held[i] for i in np.flatnonzero(clusters == cluster)]
        counts = Counter(word for words in inside for word in words)
        shares = {word: (n / len(inside), overall[word] / len(held)) for word, n in counts.items()}
        score = {word: p * np.log(p / q) for word, (p, q) in shares.items() if p > q}
        best = sorted(score, key=lambda word: (-score[word], word))[:most]
        names.append(", ".join(best) or f"group {cluster + 1}")
    return names


def _even_sample(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _principal(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (d,), axes (d, min(16, d))) of keys (n, d), axes by falling variance."""
    mean = keys.mean(dim=0)
    centred = keys - mean
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes.flip(1)[:, :CLUSTER_DIMS]
    strongest = axes.abs().argmax(dim=0)
    signs = axes[strongest, torch.arange(axes.shape[1])].sign()  # eigh leaves them open
    return mean, axes * signs


def _project(
    keys: np.ndarray, rows: np.ndarray, components: tuple[Tensor, Tensor]
) -> tuple[Tensor, float]:
    """(keys on the axes (m, dims), total variance), a block of rows at a time."""
    mean, axes = components
    parts, total = [], 0.0
    for low in range(0, len(rows), FITTED):
        centred = torch.from_numpy(keys[rows[low : low + FITTED]]).float() - mean
        total += float(centred.square().sum())
        parts.append(centred @ axes)
    projected = torch.cat(parts)
    if projected.shape[1] < 2:  # a key of one number: the second axis says nothing
        projected = torch.nn.functional.pad(projected, (0, 2 - projected.shape[1]))
    return projected, total / len(rows)


def _clusters(points: Tensor) -> Tensor:
    """k-means (m,) of points (m, dims): seeded, centres spread at the start (k-means++)."""
    generator = torch.Generator().manual_seed(SEED)
    fitted = points[torch.randperm(len(points), generator=generator)[:FITTED]]
    centres = fitted[:1]
    while len(centres) < min(CLUSTERS, len(fitted)):
        far = torch.cdist(fitted, centres).min(dim=1).values.square()
        if not far.sum() > 0:
            break  # fewer different points than clusters
        chosen = torch.multinomial(far, 1, generator=generator)
        centres = torch.cat([centres, fitted[chosen]])
    for _ in range(ROUNDS):
        nearest = torch.cdist(fitted, centres).argmin(dim=1)
        count = torch.bincount(nearest, minlength=len(centres))
        total = torch.zeros_like(centres).index_add_(0, nearest, fitted)
        centres = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(dim=1)


def _umap(keys: np.ndarray) -> Tensor:
    import umap

    if len(keys) < UMAP_NEEDS:
        raise ConfigError(f"UMAP needs at least {UMAP_NEEDS} entries, found {len(keys)}; use PCA")
    neighbours = min(15, len(keys) - 1)
    made = umap.UMAP(
        n_neighbors=neighbours, metric="cosine", random_state=SEED, init="random", n_jobs=1
    )
    return torch.from_numpy(made.fit_transform(keys.astype(np.float32))).float()


def _unit_square(points: Tensor) -> np.ndarray:
    """Moved and scaled to 0..1, the same scale on both axes, the shorter one centred."""
    low, high = points.min(dim=0).values, points.max(dim=0).values
    extent = (high - low).max().clamp(min=1e-12)
    return ((points - (low + high) / 2) / extent + 0.5).clamp(0, 1).numpy()
