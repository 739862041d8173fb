from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tinyalign.errors import ConfigError
from tinyalign.memory.search.exact import BF16_ERROR, ExactSearch, exact_topk, grouped_topk


def brute_force(queries: np.ndarray, keys: np.ndarray, k: int, banned: list[set[int]]):
    """Every product in float64, sorted by score, then by row."""
    rows_out = []
    for query, out in zip(queries.astype(np.float64), banned):
        scores = (keys.astype(np.float64) * query).sum(axis=1).astype(np.float32)
        rows = sorted(set(range(len(keys))) - out, key=lambda row: (-scores[row], row))[:k]
        rows_out.append(rows + [-1] * (k - len(rows)))
    return rows_out


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


DTYPES = [torch.float32, torch.bfloat16]


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(1, 60),
    distinct=st.integers(1, 20),
    k=st.sampled_from([0, 1, 5, 10]),
    block=st.integers(1, 70),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_search_equals_brute_force(dtype, n, distinct, k, block, seed, data) -> None:
    """Repeated keys, so ties everywhere; any block size; exclusions; banks smaller than k."""
    picks = torch.randint(distinct, (n,), generator=torch.Generator().manual_seed(seed))
    keys = unit(distinct, 7, seed)[picks]
    queries = unit(4, 7, seed + 1)
    banned = [set(data.draw(st.lists(st.integers(0, n - 1), max_size=n))) for _ in range(4)]
    exclude = [list(out) for out in banned]
    indices, scores = exact_topk(queries, keys.numpy(), k, exclude, block=block, dtype=dtype)
    assert indices.tolist() == brute_force(queries.numpy(), keys.numpy(), k, banned)
    for b in range(4):
        for row, score in zip(indices[b].tolist(), scores[b].tolist()):
            expected = float(queries[b] @ keys[row]) if row >= 0 else 0.0
            assert score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [40_000, 40_013])
def test_large_banks_are_searched_by_groups_and_still_exactly(dtype, n: int) -> None:
    keys, queries = unit(n, 8, 0), unit(3, 8, 1)
    hidden = np.arange(0, n, 7)
    search = ExactSearch(keys.half().numpy(), dtype=dtype)
    indices, scores = search.topk(queries, 6, hidden=hidden)
    stored = keys.half().float().numpy()
    expected = brute_force(queries.numpy(), stored, 6, [set(hidden.tolist())] * 3)
    assert indices.tolist() == expected
    assert (scores.diff() <= 0).all()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(600, 1000), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_best_of_the_best_groups_are_the_best(n: int, k: int, seed: int) -> None:
    scores = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    values, rows = grouped_topk(scores, k)
    assert torch.equal(values, scores.T.topk(k).values)
    assert torch.equal(scores.T.gather(1, rows), values)


def test_a_longer_bank_is_searched_by_copying_only_what_is_new() -> None:
    keys, queries = unit(300, 8, 0).numpy(), unit(4, 8, 1)
    before = ExactSearch(keys[:200])
    before.topk(queries, 3)
    after = ExactSearch(keys, before=before)
    assert all(map(torch.equal, after.topk(queries, 3), exact_topk(queries, keys, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_never_costs_a_neighbour(dtype) -> None:
    """Keys that differ by less than the rough scores can tell, among many."""
    base = unit(1, 64, 0)
    keys = normalize(base + 1e-3 * torch.randn(5000, 64), dim=1).numpy()
    indices, _ = exact_topk(base, keys, 5, dtype=dtype)
    assert indices.tolist() == brute_force(base.numpy(), keys, 5, [set()])


@pytest.mark.parametrize("block", [64, 1000, 5000])
def test_more_ties_than_there_is_room_for_still_go_to_the_lowest_rows(block: int) -> None:
    keys = unit(2, 16, 0)[torch.arange(3000) % 2]
    indices, scores = exact_topk(keys[:2], keys, 5, exclude=[[0, 4], []], block=block)
    assert indices.tolist() == [[2, 6, 8, 10, 12], [1, 3, 5, 7, 9]]
    assert (scores[0] == scores[0, 0]).all()


def test_near_ties_are_ordered_by_their_exact_scores() -> None:
    query = torch.zeros(1, 64)
    query[0, 0] = 1.0
    keys = torch.zeros(500, 64)
    keys[:, 0] = 0.5 + torch.arange(500) * 6e-8  # closer than what a block product resolves
    indices, _ = exact_topk(query, keys, 3, block=100)
    assert indices.tolist() == brute_force(query.numpy(), keys.numpy(), 3, [set()])


def test_results_do_not_depend_on_the_batch() -> None:
    queries, keys = unit(9, 24, 0), unit(700, 24, 1)
    indices, scores = exact_topk(queries, keys, 10)
    for b in range(9):
        alone = exact_topk(queries[b : b + 1], keys, 10, block=33)
        assert torch.equal(alone[0][0], indices[b])
        assert torch.equal(alone[1][0], scores[b])


@pytest.mark.parametrize("seed", range(5))
def test_any_processor_that_rounds_within_the_bound_finds_the_same(monkeypatch, seed) -> None:
    """Scores as wrong as a bfloat16 product may be, and wrong in another way at each asking."""
    keys, queries = unit(20_011, 64, seed).half().numpy(), unit(9, 64, seed + 1)
    exclude = [[3, 7], [], *[[row] for row in range(7)]]
    expected = exact_topk(queries, keys, 5, exclude, dtype=torch.float32)
    noise = torch.Generator().manual_seed(seed)

    def elsewhere(keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        scores = keys.float() @ queries.float().T
        left = BF16_ERROR - 2**-8  # of the bound, by what rounding keys and queries has cost
        return scores + left * (2 * torch.rand(scores.shape, generator=noise) - 1)

    monkeypatch.setattr("tinyalign.memory.search.exact.rough_scores", elsewhere)
    found = exact_topk(queries, keys, 5, exclude, dtype=torch.bfloat16)
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    keys, queries = unit(40_013, 64, 0).half().numpy(), unit(9, 64, 1)
    exclude = [[3, 7], [], *[[row] for row in range(7)]]
    on_cpu = ExactSearch(keys, "cpu").topk(queries, 5, exclude)
    on_gpu = ExactSearch(keys, "cuda").topk(queries, 5, exclude)
    for one, other in zip(on_cpu, on_gpu):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other).cpu())


def test_nothing_to_find_gives_no_rows() -> None:
    assert exact_topk(unit(2, 3, 0), np.zeros((0, 3), np.float32), 2)[0].tolist() == [[-1, -1]] * 2
    assert exact_topk(unit(2, 3, 0), unit(4, 3, 0), 0)[0].shape == (2, 0)
    everything = exact_topk(unit(1, 3, 0), unit(3, 3, 0), 2, exclude=[[0, 1, 2]])
    assert everything[0].tolist() == [[-1, -1]]
    assert everything[1].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("queries", "k", "exclude"),
    [(unit(2, 4, 0), 1, None), (unit(2, 3, 0), -1, None), (unit(2, 3, 0), 1, [[]])],
)
def test_wrong_shapes_are_refused(queries, k, exclude) -> None:
    with pytest.raises(ConfigError):
        exact_topk(queries, unit(5, 3, 0), k, exclude)
