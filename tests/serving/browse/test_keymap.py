"""The map of a bank's key space: places, groups, and their names."""

from __future__ import annotations

import numpy as np
import pytest

from tinyalign.errors import ConfigError
from tinyalign.serving.browse import keymap
from tinyalign.serving.browse.keymap import cluster_names, key_map, methods


def blobs(n: int, groups: int = 3, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(unit keys (n, dim) in well separated groups, the group of each)."""
    rng = np.random.default_rng(0)
    group = np.arange(n) % groups
    keys = np.eye(dim)[group] + 0.05 * rng.normal(size=(n, dim))
    return (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float16), group


def test_the_plane_is_that_of_the_two_largest_variances():
    keys, _ = blobs(90)
    drawn = key_map(keys, np.arange(90))
    centred = keys.astype(np.float64) - keys.astype(np.float64).mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    extent = np.ptp(expected, axis=0).max()
    for axis in (0, 1):
        mine = (drawn.xy[:, axis] - 0.5) * extent
        theirs = expected[:, axis] - (expected[:, axis].max() + expected[:, axis].min()) / 2
        sign = np.sign(mine @ theirs)
        np.testing.assert_allclose(mine * sign, theirs, atol=1e-3)
    assert drawn.explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-4)


def test_separate_groups_never_share_a_cluster_and_all_is_deterministic():
    keys, group = blobs(300)
    drawn, again = key_map(keys, np.arange(300)), key_map(keys, np.arange(300))
    for cluster in np.unique(drawn.clusters):
        assert len(set(group[drawn.clusters == cluster])) == 1
    np.testing.assert_array_equal(drawn.xy, again.xy)
    np.testing.assert_array_equal(drawn.clusters, again.clusters)


def test_only_live_rows_are_drawn_and_a_large_bank_is_sampled_evenly(monkeypatch):
    keys, _ = blobs(200)
    live = np.arange(50, 200)
    assert key_map(keys, live).rows.tolist() == live.tolist()
    monkeypatch.setitem(keymap.POINTS, "pca", 40)
    monkeypatch.setattr(keymap, "FITTED", 30)
    drawn = key_map(keys, live)
    assert len(drawn.rows) == len(drawn.xy) == len(drawn.clusters) == 40
    assert (drawn.rows[0], drawn.rows[-1]) == (50, 199)
    assert set(np.diff(drawn.rows)) <= {3, 4}


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_tiny_banks_and_equal_keys(n: int):
    keys = np.ones((n, 6), dtype=np.float16)
    drawn = key_map(keys, np.arange(n))
    assert drawn.xy.shape == (n, 2)
    assert np.isfinite(drawn.xy).all()
    assert set(drawn.clusters) <= {0}


def test_a_method_that_is_not_there():
    with pytest.raises(ConfigError, match="tsne"):
        key_map(*blobs(10), method="tsne")


def test_umap_is_offered_only_where_it_is_installed(monkeypatch):
    for found, expected in ((None, ["pca"]), (object(), ["pca", "umap"])):
        monkeypatch.setattr(keymap.importlib.util, "find_spec", lambda name, found=found: found)
        assert methods() == expected


def test_umap_separates_groups():
    pytest.importorskip("umap", reason="umap-learn is optional")
    keys, group = blobs(90)
    drawn = key_map(keys, np.arange(90), "umap")
    centres = np.stack([drawn.xy[group == g].mean(axis=0) for g in range(3)])
    nearest = np.linalg.norm(drawn.xy[:, None] - centres[None], axis=2).argmin(axis=1)
    assert (nearest == group).mean() > 0.95


def test_clusters_are_named_by_what_marks_them():
    texts = ["the dog runs", "the dog sleeps", "the boat sails", "the boat sinks"] * 5
    names = cluster_names(texts, np.array([0, 0, 1, 1] * 5), most=1)
    assert names == ["dog", "boat"]
    assert cluster_names(["a", "1"], np.array([0, 0])) == ["group 1"]
    assert cluster_names([], np.array([], dtype=np.int64)) == []
