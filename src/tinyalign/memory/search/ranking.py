"""Which of a query's neighbours become its memories, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args

from tinyalign.errors import ConfigError
from tinyalign.vocabulary import MemoryOrder

NEIGHBOURS = 100
"""Entries whose texts are looked at, where no number was chosen."""
TEMPERATURE = 10.0
"""Of a neighbour's weight, exp(temperature x similarity), where none was chosen."""


class HasRanking(Protocol):
    """The part of a model's config that says how its memories are chosen."""

    memory_order: MemoryOrder
    memory_neighbours: int
    memory_temperature: float


@dataclass(frozen=True)
class Ranking:
    """How k memories are chosen among the nearest entries.

    "similarity": the k nearest. "consensus": of the `neighbours` nearest, the ones whose texts
    speak best for all of them, see `consensus.spokesmen`.
    """

    order: MemoryOrder = "similarity"
    neighbours: int = 0
    """Entries that are looked at; 0 looks at no more than the k memories."""
    temperature: float = TEMPERATURE
    """A neighbour weighs exp(temperature x similarity)."""

    def __post_init__(self) -> None:
        if self.order not in get_args(MemoryOrder):
            raise ConfigError(
                f"memory order: expected one of {', '.join(get_args(MemoryOrder))}, found "
                f"{self.order!r}"
            )
        if self.neighbours < 0 or self.temperature < 0:
            raise ConfigError(
                "a ranking needs neighbours and temperature of at least 0, found "
                f"{self.neighbours} and {self.temperature}"
            )

    @classmethod
    def of(cls, config: HasRanking) -> Ranking:
        """The one that a model was trained with; many neighbours where it names none."""
        n = config.memory_neighbours or NEIGHBOURS
        return cls(config.memory_order, n, config.memory_temperature)
