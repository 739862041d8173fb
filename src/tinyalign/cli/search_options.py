"""How a bank is searched, as options: what `bank search`, `ask` and `evaluate` share."""

from __future__ import annotations

from dataclasses import dataclass

from tinyalign.vocabulary import RECALL, Engine


@dataclass(kw_only=True)
class SearchOptions:
    """Which search finds the memories."""

    engine: Engine = "auto"
    """"exact", "ivf" (approximate, for very large banks), or by the bank's size."""
    recall: float = RECALL
    """Share of the true nearest that an approximate search must find."""
