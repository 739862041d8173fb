"""A bank in Milvus finds what the bank finds by itself; run against the embedded form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tinyalign.cli import main
from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.attach import attach_memory, detach_memory
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.bank.entries import Entry
from tinyalign.memory.building.editor import BankEditor, compact
from tinyalign.memory.milvus import collection as collections
from tinyalign.memory.milvus import index as searching
from tinyalign.memory.milvus import push as pushing
from tinyalign.memory.milvus.address import MilvusAddress
from tinyalign.memory.milvus.collection import MilvusCollection, Record
from tinyalign.memory.milvus.index import MilvusIndex
from tinyalign.memory.milvus.push import push_bank
from tinyalign.memory.search.index import KeyIndex
from tinyalign.memory.search.retriever import Exclusion, Retriever
from tinyalign.model.build import build_model

pytest.importorskip("pymilvus", reason="needs the extra [milvus]")
pytest.importorskip("milvus_lite", reason="needs Milvus Lite, of the extra [milvus]")

pytestmark = pytest.mark.slow  # an engine in the process, half a minute

SOURCES = ("photos", 'with "quotes"', "back\\slash")


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def grow(folder: Path, keys: torch.Tensor, start: int = 0) -> MemoryBank:
    """Append entries e{start}, e{start + 1}, ... with these keys and some values."""
    with BankEditor(folder) as editor:
        shape = (len(keys), editor.manifest.n_latents, editor.manifest.d_latents)
        entries = [
            Entry(f"e{i}", f"text {i} ß", "", f"picture {i // 2}", SOURCES[i % 3], "")
            for i in range(start, start + len(keys))
        ]
        values = torch.linspace(-1, 1, shape[1] * shape[2]).view(1, *shape[1:])
        editor.append(keys, values.expand(shape), entries)
        return editor.commit("grown")


def shrink(folder: Path, rows: list[int]) -> MemoryBank:
    with BankEditor(folder) as editor:
        editor.remove(rows)
        return editor.commit("shrunk")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all tests; each takes a collection of its own."""
    return tmp_path_factory.mktemp("milvus") / "tests.db"


@pytest.fixture
def place(server: Path, request: pytest.FixtureRequest) -> MilvusAddress:
    """A collection that nobody else uses."""
    name = f"c{abs(hash(request.node.nodeid))}"
    return MilvusAddress.parse(f"milvus+lite:{server}/{name}")


@pytest.fixture
def folder(bank: MemoryBank, tmp_path: Path) -> Path:
    """A copy of the tiny bank, to be changed."""
    return shutil.copytree(bank.folder, tmp_path / "bank")


@pytest.fixture
def in_milvus(place: MilvusAddress) -> Callable[[MemoryBank], MilvusIndex]:
    """Push a bank and open what is there now."""

    def pushed(bank: MemoryBank) -> MilvusIndex:
        return MilvusIndex.open(str(push_bank(bank, place).address))

    return pushed


def contents(place: MilvusAddress) -> list[int]:
    collection = MilvusCollection(place)
    return collection.rows(1_000_000).tolist()


def same(found: tuple, expected: tuple) -> bool:
    return all(map(torch.equal, found, expected))


# -- the same answers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(bank: MemoryBank, server: Path, tmp_path_factory) -> tuple[MemoryBank, MilvusIndex]:
    """5,000 entries; 2,000 share one key and 700 are closer than float32 products can tell."""
    folder = shutil.copytree(bank.folder, tmp_path_factory.mktemp("crowded") / "bank")
    keys = unit(5000, bank.manifest.key_dim, 0)
    keys[1000:3000] = keys[7]
    keys[4000:4700] = normalize(keys[8] + 1e-4 * keys[4000:4700], dim=1)
    keys[30] = 0.0
    grow(folder, keys)
    made = shrink(folder, [1, 20, 21, 1500, 1501, 4999])
    address = MilvusAddress.parse(f"milvus+lite:{server}/crowded")
    return made, MilvusIndex.open(str(push_bank(made, address).address))


@pytest.fixture(scope="module")
def queries(crowded) -> torch.Tensor:
    """Random ones, the crowded keys themselves, and one that says nothing."""
    bank = crowded[0]
    width = bank.manifest.key_dim
    own = torch.from_numpy(bank.keys[[19, 20, 5011]]).float()  # the 12 of the tiny bank are first
    return torch.cat([unit(5, width, 1), own, torch.zeros(1, width)])


@pytest.mark.parametrize("k", [0, 1, 5, 100, 3000, 6000])
def test_milvus_finds_exactly_what_the_bank_finds(k: int, crowded, queries) -> None:
    bank, index = crowded
    assert same(index.topk(queries, k), KeyIndex(bank, engine="exact").topk(queries, k))


@pytest.mark.parametrize("k", [1, 5])
def test_with_exclusions_short_and_long(k: int, crowded, queries) -> None:
    bank, index = crowded
    exclude = [[], [3], list(range(0, 5012, 2)), list(range(5012)), [-1, 7], [19], [20, 1012]]
    exclude += [list(range(1000, 3000)), [0]]
    expected = KeyIndex(bank, engine="exact").topk(queries, k, exclude)
    assert same(index.topk(queries, k, exclude), expected)
    assert expected[0][3].tolist() == [-1] * k


@pytest.mark.parametrize("sources", [*([one] for one in SOURCES), ["made"], list(SOURCES)])
def test_from_some_sources_only(sources: list[str], crowded, queries) -> None:
    bank, index = crowded
    expected = KeyIndex(bank, engine="exact").topk(queries, 20, sources=sources)
    assert same(index.topk(queries, 20, sources=sources), expected)


def test_among_some_rows_only(crowded, queries) -> None:
    bank, index = crowded
    rows = np.arange(0, 5012, 7)
    expected = KeyIndex(bank, engine="exact").topk(queries, 9, only=rows, sources=SOURCES)
    assert same(index.topk(queries, 9, only=rows, sources=SOURCES), expected)


def test_answers_too_long_for_one_request_come_in_parts(crowded, queries, monkeypatch) -> None:
    """Far more ties than a request may ask for, as in banks of millions."""
    bank, index = crowded
    monkeypatch.setattr(searching, "MOST", 150)
    for k in (5, 400):
        expected = KeyIndex(bank, engine="exact").topk(queries, k)
        assert same(index.topk(queries, k), expected)


def test_answers_do_not_depend_on_the_batch(crowded, queries) -> None:
    index = crowded[1]
    indices, scores = index.topk(queries, 5)
    for b in range(len(queries)):
        assert same(index.topk(queries[b : b + 1], 5), (indices[b : b + 1], scores[b : b + 1]))


def test_an_unknown_source_is_refused_with_those_there_are(crowded, queries) -> None:
    with pytest.raises(BankError, match=r"no entry came from nowhere.*photos"):
        crowded[1].topk(queries, 5, sources=["nowhere"])


def test_queries_of_another_width_are_refused(crowded) -> None:
    with pytest.raises(ConfigError, match="like the keys"):
        crowded[1].topk(unit(2, 3, 0), 5)


def test_an_approximate_index_orders_what_it_finds_exactly(folder, place, queries) -> None:
    bank = grow(folder, unit(2000, MemoryBank.open(folder).manifest.key_dim, 5))
    done = push_bank(bank, place, index="hnsw")
    found, scores = MilvusIndex.open(str(done.address)).topk(queries[:5], 10)
    assert (scores.diff() <= 0).all()
    true = KeyIndex(bank, engine="exact").topk(queries[:5], 10)[0]
    assert len(set(found.flatten().tolist()) & set(true.flatten().tolist())) > 25
    with pytest.raises(ConfigError, match="made with index 'hnsw'"):
        push_bank(bank, place, index="flat")


# -- a bank that changes -------------------------------------------------------------------------


def test_pushing_again_does_nothing(folder, place) -> None:
    bank = MemoryBank.open(folder)
    first, second = push_bank(bank, place), push_bank(bank, place)
    assert (first.added, first.deleted, first.kept, first.entries) == (12, 0, 0, 12)
    assert (second.added, second.deleted, second.kept, second.entries) == (0, 0, 12, 12)


def test_additions_and_removals_are_brought_over(folder, place, in_milvus, queries) -> None:
    width = MemoryBank.open(folder).manifest.key_dim
    in_milvus(MemoryBank.open(folder))
    grow(folder, unit(50, width, 2))
    bank = shrink(folder, [0, 5, 30])
    done = push_bank(bank, place)
    assert (done.added, done.deleted, done.kept) == (49, 2, 10)
    assert contents(place) == bank.live.tolist()
    index = MilvusIndex.open(str(done.address))
    assert same(index.topk(queries, 70), KeyIndex(bank, engine="exact").topk(queries, 70))


def test_a_push_that_was_killed_goes_on(folder, place, queries, monkeypatch) -> None:
    monkeypatch.setattr(pushing, "BATCH", 64)
    bank = grow(folder, unit(300, MemoryBank.open(folder).manifest.key_dim, 3))
    put, calls = MilvusCollection.put, []

    def dies(self, *args) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(self, *args)

    monkeypatch.setattr(MilvusCollection, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        push_bank(bank, place)
    with pytest.raises(BankError, match=r"first push was not finished.*bank push"):
        MilvusIndex.open(str(place.with_values(folder)))
    done = push_bank(bank, place)
    assert (done.added, done.kept) == (312 - 128, 128)
    index = MilvusIndex.open(str(done.address))
    assert same(index.topk(queries, 20), KeyIndex(bank, engine="exact").topk(queries, 20))


def test_what_a_killed_push_of_another_future_left_is_not_trusted(
    folder, tmp_path, place, queries, monkeypatch
) -> None:
    """The bank was restored from a copy and grew differently: same rows, other keys."""
    width = MemoryBank.open(folder).manifest.key_dim
    other = shutil.copytree(folder, tmp_path / "other")
    push_bank(MemoryBank.open(folder), place)
    with monkeypatch.context() as patch:
        patch.setattr(MilvusCollection, "flush", lambda self: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):  # noqa: PT011
            push_bank(grow(folder, unit(20, width, 4)), place)
    bank = grow(other, unit(20, width, 5))
    done = push_bank(bank, place)
    assert (done.added, done.kept) == (20, 12)
    index = MilvusIndex.open(str(done.address))
    assert same(index.topk(queries, 20), KeyIndex(bank, engine="exact").topk(queries, 20))


def test_removals_show_at_once_and_additions_after_push_and_refresh(
    folder, place, in_milvus, perceiver, queries
) -> None:
    bank = MemoryBank.open(folder)
    index = in_milvus(bank)
    retriever = Retriever(index.bank, perceiver, 20, index=index)
    shrink(folder, [3])
    assert 3 not in index.topk(queries, 20)[0]
    grown = grow(folder, unit(5, bank.manifest.key_dim, 6))
    push_bank(grown, place)
    assert index.topk(queries, 20)[0].max() == 11  # this view is still of twelve rows
    assert same(index.topk(queries, 20), KeyIndex(index.bank, engine="exact").topk(queries, 20))
    assert retriever.refresh()
    assert same(index.topk(queries, 20), KeyIndex(grown, engine="exact").topk(queries, 20))


def test_a_refreshed_bank_that_was_not_pushed_is_refused(folder, in_milvus, queries) -> None:
    index = in_milvus(MemoryBank.open(folder))
    grow(folder, unit(5, index.bank.manifest.key_dim, 6))
    index.bank.refresh()
    with pytest.raises(BankError, match=r"change 1, .*change 2.*bank push"):
        index.topk(queries, 3)


def test_a_compacted_bank_replaces_its_collection_only_when_told_to(
    folder, place, in_milvus, queries
) -> None:
    in_milvus(shrink(folder, [2]))
    bank = compact(folder)
    with pytest.raises(BankError, match=r"compacted.*--replace"):
        push_bank(bank, place)
    done = push_bank(bank, place, replace_other=True)
    assert (done.added, done.kept) == (11, 0)
    index = MilvusIndex.open(str(done.address))
    assert same(index.topk(queries, 5), KeyIndex(bank, engine="exact").topk(queries, 5))


def test_a_collection_filled_anew_behind_an_open_index_is_noticed(
    folder, tmp_path, place, in_milvus, queries
) -> None:
    width = MemoryBank.open(folder).manifest.key_dim
    other = shutil.copytree(folder, tmp_path / "other")
    index = in_milvus(grow(folder, unit(50, width, 7)))
    push_bank(grow(other, unit(50, width, 8)), place, replace_other=True)
    with pytest.raises(BankError, match="filled from another bank meanwhile"):
        index.topk(queries, 20)


# -- from outside --------------------------------------------------------------------------------


def test_the_retriever_gives_the_same_memories(crowded, perceiver, samples, queries) -> None:
    bank, index = crowded
    here = Retriever(bank, perceiver, 5)
    there = Retriever(index.bank, perceiver, 5, index=index)
    features = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    ids = perceiver.query_ids([sample.instruction for sample in samples[:3]])
    exclude = [Exclusion(ids=("e5",), image_hashes=("picture 9",))] * 3
    one, two = here.retrieve(features, ids, exclude), there.retrieve(features, ids, exclude)
    assert one.ids == two.ids
    for name in ("values", "mask", "scores"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    hits = [r.search(features=features[0], k=9, sources=["photos"]) for r in (here, there)]
    assert hits[0] == hits[1]
    assert {hit.entry.source for hit in hits[1]} == {"photos"}


def test_a_model_takes_its_memory_from_milvus(
    folder, in_milvus, tiny_vision_dir, tiny_llm_dir, perceiver
) -> None:
    index = in_milvus(MemoryBank.open(folder))
    config = perceiver.network.config
    model, processor = build_model(
        tiny_vision_dir, tiny_llm_dir, k=3, perceiver_config=config, memory_latents_used=8
    )
    model.config.perceiver_hash = perceiver.hash
    retriever = attach_memory(model, processor, str(index.collection.address))
    assert isinstance(retriever.index, MilvusIndex)
    assert retriever.bank.folder == folder
    detach_memory(model, processor)


def test_the_command_line_pushes_and_searches(folder, place, capsys) -> None:
    uri = str(place).rpartition("/")[0]
    words = ["bank", "push", str(folder), uri, "--collection", place.collection]
    assert main(words) == 0
    where = str(place.with_values(folder))
    assert f"bank search {where}" in capsys.readouterr().out.replace("'", "")
    assert main([*words, "--json"]) == 0
    assert '"kept": 12' in capsys.readouterr().out
    search = ["--text", "What colour is shape 1?", "--json"]
    assert main(["bank", "search", where, *search]) == 0
    found = capsys.readouterr().out
    assert main(["bank", "search", str(folder), *search]) == 0
    assert capsys.readouterr().out == found


# -- what can be wrong ---------------------------------------------------------------------------


def test_a_server_that_does_not_answer_is_named_soon(bank, monkeypatch) -> None:
    monkeypatch.setattr(collections, "CONNECT_SECONDS", 1)
    uri = "milvus://127.0.0.1:9/memories"
    with pytest.raises(BankError, match=r"milvus://127\.0\.0\.1:9/memories.*is the server up"):
        MilvusIndex.open(f"{uri}?values={bank.folder}")


def test_a_password_is_never_shown() -> None:
    address = MilvusAddress.parse("milvus://ann:s3cret@host/memories?values=/banks/b")
    assert address.token == "ann:s3cret"
    assert "s3cret" not in f"{address} {address!r}"


def test_a_missing_package_is_named_with_its_extra(place, bank, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(ConfigError, match=r"pymilvus is not installed.*tinyalign-vlm\[milvus\]"):
        push_bank(bank, place)


def test_a_missing_collection_says_how_to_make_one(bank, place) -> None:
    with pytest.raises(BankError, match=r"there is no collection.*bank push"):
        MilvusIndex.open(str(place.with_values(bank.folder)))


def test_a_missing_file_is_not_made_by_looking_for_it(tmp_path) -> None:
    with pytest.raises(BankError, match="no file"):
        MilvusIndex.open(f"milvus+lite:{tmp_path}/none.db/c")
    assert not list(tmp_path.iterdir())


def test_a_collection_of_somebody_else_is_left_alone(bank, place) -> None:
    client = MilvusCollection(place).client
    client.create_collection(place.collection, dimension=4)
    for replace in (False, True):
        with pytest.raises(BankError, match="was not made by"):
            push_bank(bank, place, replace_other=replace)
    assert client.has_collection(place.collection)


def test_another_bank_is_refused_on_both_sides(folder, tmp_path, place, in_milvus) -> None:
    width = MemoryBank.open(folder).manifest.key_dim
    other = grow(shutil.copytree(folder, tmp_path / "other"), unit(9, width, 0))
    mine = grow(folder, unit(9, width, 1))
    in_milvus(mine)
    with pytest.raises(BankError, match=f"holds bank {mine.hash}.*is bank {other.hash}"):
        MilvusIndex.open(str(place.with_values(other.folder)))
    with pytest.raises(BankError, match="holds another bank"):
        push_bank(other, place)


def test_keys_of_another_width_are_told_from_a_stale_bank(folder, place) -> None:
    bank = MemoryBank.open(folder)
    collection = MilvusCollection(place)
    span = pushing.spans(bank, [bank.rows])[0]
    collection.create(bank.manifest.key_dim + 1, Record(span, span, bank.hash))
    with pytest.raises(BankError, match=f"have {bank.manifest.key_dim};"):
        MilvusIndex.open(str(place.with_values(folder)))


def test_the_folder_of_the_values_is_named_or_the_one_pushed_from(
    folder, place, in_milvus, tmp_path
) -> None:
    in_milvus(MemoryBank.open(folder))
    assert MilvusIndex.open(str(place)).bank.folder == folder.resolve()
    moved = folder.rename(tmp_path / "moved here")
    with pytest.raises(BankError, match=r"pushed from .* not here.*\?values="):
        MilvusIndex.open(str(place))
    assert MilvusIndex.open(str(place.with_values(moved))).bank.folder == moved
    with pytest.raises(BankError, match="no folder"):
        MilvusIndex.open(str(place.with_values(tmp_path / "nowhere")))


def test_texts_too_long_for_milvus_are_whole_in_results(folder, in_milvus) -> None:
    text = "ß" * 40_000
    with BankEditor(folder) as editor:
        m = editor.manifest
        entry = Entry("long", text, "", "h", "made", "")
        editor.append(unit(1, m.key_dim, 9), torch.ones(1, m.n_latents, m.d_latents), [entry])
        bank = editor.commit("long")
    index = in_milvus(bank)
    row = int(index.topk(unit(1, bank.manifest.key_dim, 9), 1)[0])
    assert index.bank.entry(row).text == text


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("http://host/c", "not a Milvus URI"),
        ("milvus:///c", "no host"),
        ("milvus://host:99999999/c", "Port|port"),
        ("milvus://host/two/names", "letters, digits"),
        ("milvus://host/c?value=x", "no option 'value'"),
        ("milvus://host/c?tls=maybe", "true or false"),
        ("milvus+lite:file.sqlite/c", "must end in .db"),
    ],
)
def test_a_uri_that_is_none_says_what_does_not_fit(uri: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        MilvusAddress.parse(uri)


@pytest.mark.parametrize(
    ("uri", "server", "collection", "values"),
    [
        ("milvus://host/c?values=/a/b", "http://host:19530", "c", Path("/a/b")),
        ("milvus://[::1]:7/c?tls=true", "https://[::1]:7", "c", None),
        ("milvus://host:1", "http://host:1", "tinyalign", None),
        ("milvus+lite:/a/f.db/c?values=my%20bank+1", "/a/f.db", "c", Path("my bank+1")),
        ("milvus+lite:f.db", "f.db", "tinyalign", None),
        ("milvus+lite://f.db/c", "f.db", "c", None),
    ],
)
def test_uris_are_read_and_written(uri, server, collection, values) -> None:
    address = MilvusAddress.parse(uri)
    assert (address.server, address.collection, address.values) == (server, collection, values)
    assert MilvusAddress.parse(str(address)) == address


def test_a_collection_named_twice_must_be_the_same() -> None:
    assert MilvusAddress.parse("milvus://host/c", "c").collection == "c"
    with pytest.raises(ConfigError, match="two collections"):
        MilvusAddress.parse("milvus://host/c", "d")
