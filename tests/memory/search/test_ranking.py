"""How memories are chosen, as settings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tinyalign.errors import ConfigError
from tinyalign.memory.search.ranking import NEIGHBOURS, Ranking


def test_a_model_s_ranking_is_read_from_its_config() -> None:
    config = SimpleNamespace(memory_order="consensus", memory_neighbours=50, memory_temperature=5.0)
    assert Ranking.of(config) == Ranking("consensus", 50, 5.0)


def test_a_model_that_names_no_number_looks_at_many() -> None:
    config = SimpleNamespace(memory_order="similarity", memory_neighbours=0, memory_temperature=9.0)
    assert Ranking.of(config).neighbours == NEIGHBOURS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": "votes"}, "similarity, consensus, found 'votes'"),
        ({"neighbours": -1}, "found -1 and"),
        ({"temperature": -0.1}, "and -0.1"),
    ],
)
def test_what_cannot_be_is_refused(settings, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Ranking(**settings)
