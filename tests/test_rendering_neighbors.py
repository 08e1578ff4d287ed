"""Nearest neighbours: against all distances in torch, on awkward point sets; independent of the number of threads."""

import numpy as np
import pytest
import torch
from geometry_toys import open3d_or_skip

from nfc_splat.rendering.kernels.neighbors_reference import nearest_neighbors_reference
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.rendering.neighbors import nearest_neighbors, point_tree


def clouds():
    """Pairs (queries, points) by name."""
    random = np.random.default_rng(0)
    surface = random.normal(size=(3000, 3))
    surface /= np.linalg.norm(surface, axis=1, keepdims=True)
    lattice = np.stack(np.meshgrid(*[np.arange(9.0)] * 3), -1).reshape(-1, 3)
    line = np.outer(np.linspace(0, 1, 700), [1, 0, 0])
    return {
        "surface": (surface + random.normal(size=surface.shape) * 0.05, surface),
        "volume": (random.random((2000, 3)), random.random((2500, 3))),
        "far apart": (surface[:500], surface * 0.01 + [300, -200, 50]),
        "flat": (random.random((900, 3)) * [1, 1, 0], random.random((800, 3)) * [1, 0, 1]),
        "line": (surface[:600], line),
        "ties": (lattice + 0.5, lattice),
        "one point": (surface[:50], surface[:1]),
        "one query": (surface[:1] * 3, surface),
        "all the same": (surface[:70], np.repeat(surface[:1], 100, axis=0)),
        "sizes around a block": (surface[:65], surface[100:109]),
        "tiny": (surface[:200] * 1e-9, surface[200:500] * 1e-9),
        "far from the origin": (surface[:400] + 1e6, surface[400:900] + 1e6),
    }


@pytest.mark.parametrize("name", clouds())
def test_distances_equal_those_of_all_pairs(name):
    queries, points = clouds()[name]
    distances, indices = nearest_neighbors(point_tree(queries), point_tree(points))
    expected, _ = nearest_neighbors_reference(torch.from_numpy(queries), torch.from_numpy(points))
    np.testing.assert_allclose(distances, expected.numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(queries - points[indices], axis=1), distances, rtol=1e-12, atol=1e-15)


def test_neighbours_agree_with_open3d():
    open3d = open3d_or_skip()
    queries, points = clouds()["surface"]
    cloud = [open3d.geometry.PointCloud(open3d.utility.Vector3dVector(rows)) for rows in (queries, points)]
    expected = np.asarray(cloud[0].compute_point_cloud_distance(cloud[1]))
    assert np.abs(nearest_neighbors(point_tree(queries), point_tree(points))[0] - expected).max() < 1e-12


def test_the_number_of_threads_changes_nothing():
    queries, points = clouds()["ties"]
    queries = np.repeat(queries, 8, axis=0)
    results = []
    for count in (1, 2):
        set_threads(count)
        results.append(nearest_neighbors(point_tree(queries), point_tree(points)))
    set_threads(None)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.empty((0, 3)), "no point"),
        (np.zeros((4, 2)), "shape"),
        (np.array([[0.0, np.nan, 0.0]]), "NaN"),
        (np.array([[0.0, 1, 0.0], [np.inf, 0, 0]]), "NaN or infinite"),
    ],
)
def test_what_is_no_point_set_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        point_tree(points)
