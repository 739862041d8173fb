"""A mixture gives each stream its share, and goes on from a saved position."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from tinyalign.data.readers.mixture import MixtureStream
from tinyalign.data.readers.shards.shard import SequenceShard
from tinyalign.data.readers.shards.stream import SampleStream
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError, DataError


def mixture(weights=(3, 1), seed=0):
    streams = []
    for name, size in (("a", 50), ("b", 7), ("c", 20))[: len(weights)]:
        samples = [Sample(f"{name}{n}", (), ()) for n in range(size)]
        streams.append(SampleStream([SequenceShard(samples, name)], buffer=5, seed=seed))
    return MixtureStream(streams, weights, seed)


def ids(stream, n):
    return [sample.id for sample in islice(stream, n)]


def test_each_stream_has_its_share():
    counts = Counter(name[0] for name in ids(mixture((6, 3, 1)), 4000))
    for name, share in zip("abc", (0.6, 0.3, 0.1)):
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)


def test_a_small_stream_comes_round_again():
    found = [name for name in ids(mixture((1, 1)), 400) if name[0] == "b"]
    assert min(Counter(found).values()) > 10


@pytest.mark.parametrize("stop", [0, 1, 77, 1024, 1500])
def test_a_saved_position_goes_on_exactly(stop):
    whole, first, second = ids(mixture(), 2200), mixture(), mixture()
    assert ids(first, stop) == whole[:stop]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert ids(second, 2200 - stop) == whole[stop:]


def test_a_position_of_another_mixture_is_refused():
    with pytest.raises(DataError, match="another mixture"):
        mixture((1, 1)).load_state_dict(mixture((2, 1)).state_dict())


def test_weights_are_above_zero_and_one_a_stream():
    with pytest.raises(ConfigError, match="above 0"):
        mixture((1, 0))
    with pytest.raises(ConfigError, match="3 weights"):
        MixtureStream(mixture().streams, [1, 1, 1])
