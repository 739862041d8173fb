"""The folds that images fall into, for key functions that are fitted on texts of their images."""

from __future__ import annotations

N_FOLDS = 5


def fold_of(image_hash: str, n_folds: int = N_FOLDS) -> int:
    """The fold an image belongs to: a fixed function of its hash (hexadecimal)."""
    return int(image_hash, 16) % n_folds
