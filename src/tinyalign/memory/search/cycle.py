"""Whose value an entry gets where values are shuffled: the one meaning of the word."""

from __future__ import annotations

from collections.abc import Container

import numpy as np


class Cycle:
    """One random round trip through a bank, so that no entry keeps its own value.

    The same seed deals the same values, whoever asks: two queries that find the same entry see the
    same wrong value.
    """

    def __init__(self, live: np.ndarray, rows: int, seed: int) -> None:
        """live: the rows in the bank (int64), of `rows` on disk."""
        order = np.random.default_rng(seed).permutation(live)
        self._next = np.full(rows, -1, dtype=np.int64)
        self._next[order] = np.roll(order, -1)

    def next(self, row: int, banned: Container[int] = ()) -> int:
        """The row whose value `row` shows: the first on the cycle that is not banned.

        It ends, since a row that was found is not banned itself.
        """
        at = int(self._next[row])
        while at in banned:
            at = int(self._next[at])
        return at
