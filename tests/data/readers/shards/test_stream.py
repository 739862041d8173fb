"""A stream gives every sample in an order that a saved position goes on from exactly."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyalign.data.readers import open_dataset, open_stream
from tinyalign.data.readers.shards import stream as module
from tinyalign.data.readers.shards.shard import Record, SequenceShard
from tinyalign.data.readers.shards.stream import Part, SampleStream
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError, DataError

EVERY = [f"id-{n}" for n in range(40)]


def ids(samples, n=None):
    return [sample.id for sample in islice(samples, n)]


def made(sizes):
    """Shards of so many samples each, without files."""
    numbers = iter(range(10**6))
    return [
        SequenceShard([Sample(f"{next(numbers)}", (), ()) for _ in range(size)], f"s{i}")
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("buffer", [0, 7, 1000])
def test_an_epoch_has_every_sample_once(tars, buffer):
    stream = open_stream(str(tars), buffer=buffer, epochs=1)
    found = ids(stream)
    assert sorted(found) == sorted(EVERY)
    assert (found == EVERY) == (buffer == 0)


def test_another_epoch_and_another_seed_have_another_order(tars):
    found = ids(open_stream(str(tars), buffer=50, seed=1), 80)
    assert sorted(found[:40]) == sorted(found[40:]) == sorted(EVERY)  # epochs do not mix
    assert found[:40] != found[40:]
    assert ids(open_stream(str(tars), buffer=50, seed=1), 80) == found
    assert ids(open_stream(str(tars), buffer=50, seed=2), 80) != found


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    buffer=st.integers(0, 12),
    stop=st.integers(0, 60),
    data=st.data(),
)
def test_a_saved_position_goes_on_exactly(sizes, buffer, stop, data):
    def part():
        return SampleStream(made(sizes), buffer=buffer, part=Part(index, count), seed=3)

    count = data.draw(st.integers(1, min(3, sum(sizes))))
    index = data.draw(st.integers(0, count - 1))
    try:
        whole = ids(part(), stop + 30)
    except DataError:  # a part that no record falls to
        return
    first = part()
    assert ids(first, stop) == whole[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    second = part()
    second.load_state_dict(state)
    assert ids(second, 30) == whole[stop:]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_position_goes_on_in_files_too(kind, tmp_path, tar, parquet):
    for shard in range(3):
        make = tar if kind == "tar" else parquet
        make(tmp_path / f"{shard}.{kind}", range(7 * shard, 7 * shard + 7))
    glob = str(tmp_path / f"*.{kind}")
    whole = ids(open_stream(glob, buffer=4), 60)
    for stop in (1, 4, 13, 21, 37):
        first, second = (open_stream(glob, buffer=4) for _ in range(2))
        assert ids(first, stop) == whole[:stop]
        second.load_state_dict(first.state_dict())
        assert ids(second, 60 - stop) == whole[stop:]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_parts_of_an_epoch_make_the_whole_and_share_nothing(tars, count):
    parts = [ids(open_stream(str(tars), epochs=1, part=Part(i, count))) for i in range(count)]
    assert sorted(name for part in parts for name in part) == sorted(EVERY)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_position_of_another_stream_is_refused(tars):
    state = open_stream(str(tars), seed=1).state_dict()
    with pytest.raises(DataError, match="seed 1, here 2"):
        open_stream(str(tars), seed=2).load_state_dict(state)
    (tars / "03.tar").unlink()
    with pytest.raises(DataError, match=r"another stream \(shards"):
        open_stream(str(tars), seed=1).load_state_dict(state)


def test_a_position_goes_on_where_the_data_moved_to(tars, tmp_path):
    whole, first = ids(open_stream(str(tars)), 50), open_stream(str(tars))
    ids(first, 20)
    moved = open_stream(str(tars.rename(tmp_path / "elsewhere")))
    moved.load_state_dict(first.state_dict())
    assert ids(moved, 30) == whole[20:]


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "cut between files", "overwritten", "no tar", "gone"])
def test_a_broken_tar_is_reported_and_left(tars, how):
    path, shards = tars / "01.tar", [str(tars / f"{n:02d}.tar") for n in range(4)]
    if how == "cut":
        cut(path, 0.45)
    elif how == "cut between files":
        path.write_bytes(path.read_bytes()[: 5 * 4 * 512])  # whole pairs, and no end
    elif how == "overwritten":
        data = bytearray(path.read_bytes())
        data[5 * 4 * 512 : 5 * 4 * 512 + 300] = b"?" * 300  # the header of a file
        path.write_bytes(data)
    elif how == "no tar":
        path.write_bytes(b"<html>not found</html>" * 99)
    else:
        path.unlink()
    stream = open_stream(shards, buffer=0, epochs=1)
    found = ids(stream)
    (problem,) = stream.report.shards.values()
    assert problem.shard == "01.tar"
    assert found == EVERY[: 10 + problem.read] + EVERY[20:]
    assert problem.read == {"no tar": 0, "gone": 0, "cut": 6}.get(how, 4)
    with pytest.raises(DataError, match=r"shard 01\.tar: .*left after"):
        ids(open_stream(shards, epochs=1, strict=True))


@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_a_broken_parquet_file_is_reported_and_left(tmp_path, parquet, how):
    for shard in range(2):
        parquet(tmp_path / f"{shard}.parquet", range(20 * shard, 20 * shard + 20))
    if how == "cut":
        cut(tmp_path / "0.parquet", 0.7)
    else:
        damage(tmp_path / "0.parquet")
    stream = open_stream(str(tmp_path / "*.parquet"), buffer=0, epochs=1)
    found = ids(stream)
    (problem,) = stream.report.shards.values()
    assert problem.shard == "0.parquet"
    assert problem.read < 20
    assert found == [*EVERY[: problem.read], *EVERY[20:]]


def test_a_stream_without_a_sample_says_so_instead_of_turning_for_ever(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"no sample in any of 1 shards: shard a\.tar"):
        ids(open_stream(str(tmp_path / "a.tar")), 1)
    with pytest.raises(ConfigError, match="0 samples or more"):
        open_stream(str(tmp_path / "a.tar"), buffer=-1)


class Flaky:
    """A remote shard whose connection breaks at the third record, so many times."""

    name, remote = "flaky", True

    def __init__(self, breaks):
        self.breaks = breaks

    def records(self, at=0):
        for number in range(at, 6):
            if number == 2 and self.breaks:
                self.breaks -= 1
                raise ConnectionResetError("reset by peer")
            yield Record(number, [Sample(f"{number}", (), ())])


def test_a_connection_that_breaks_is_taken_up_again(monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.0)
    stream = SampleStream([Flaky(2)], buffer=0, epochs=1)
    assert ids(stream) == list("012345")
    assert not stream.report.shards
    stream = SampleStream([Flaky(3)], buffer=0, epochs=1)
    assert ids(stream) == list("01")
    assert "reset by peer" in str(stream.report.shards["flaky"])


def test_any_data_set_streams(tmp_path):
    rows = [
        {
            "id": f"{n}",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        }
        for n in range(9)
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    stream = open_stream(tmp_path / "data.json", buffer=3, epochs=1)
    assert sorted(ids(stream)) == [f"{n}" for n in range(9)]


def test_tars_have_random_access_too(tars):
    dataset = open_dataset(str(tars / "*.tar"))
    assert ids(dataset) == EVERY
    stream = {sample.id: sample for sample in open_stream(str(tars), epochs=1)}
    for index in (39, 3, 4, 17, 4):
        assert dataset[index] == stream[EVERY[index]]  # with its image


def test_random_access_says_what_it_left_out(tars):
    cut(tars / "02.tar", 0.5)
    dataset = open_dataset(str(tars))
    assert list(dataset.report.shards) == list(dataset.left_out()) == ["02.tar"]
    assert open_dataset(str(tars), limit=5).left_out() == dataset.left_out()
    with pytest.raises(DataError, match=r"shard 02\.tar: .*left after"):
        open_dataset(str(tars), strict=True)
    assert ids(dataset) == EVERY[:20] + EVERY[20 : 20 + len(dataset) - 30] + EVERY[30:]
    (tars / "03.tar").unlink()
    assert dataset[0].id == EVERY[0]
    with pytest.raises(DataError, match=r"shard 03\.tar: can't be read any more.*fetch .* again"):
        dataset[len(dataset) - 1]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_what_a_cut_shard_still_has_is_read_in_any_order(tmp_path, tar, parquet, kind):
    make, paths = {"tar": tar, "parquet": parquet}[kind], []
    for shard in range(2):
        numbers = range(20 * shard, 20 * shard + 20)
        paths.append(make(tmp_path / f"{shard}.{kind}", numbers))
    path = paths[0]
    if kind == "tar":
        cut(path, 0.45)
    else:
        damage(path)
    dataset = open_dataset([str(path) for path in paths])
    assert list(dataset.report.shards) == [path.name]
    assert 20 < len(dataset) < 40
    in_order = list(dataset)
    backwards = [dataset[index] for index in reversed(range(len(dataset)))]
    assert backwards[::-1] == in_order
    last = len(dataset) - 21  # the one before the break
    assert [dataset[index].id for index in (last, 0, last, last)] == ids(
        [in_order[last], in_order[0], in_order[last], in_order[last]]
    )


def test_a_list_of_parquet_files_has_random_access(tmp_path, parquet):
    files = [str(parquet(tmp_path / f"{n}.parquet", range(5 * n, 5 * n + 5))) for n in range(2)]
    assert ids(open_dataset(files)) == [f"id-{n}" for n in range(10)]
