"""Exact nearest neighbours between point sets: a tree per set, built once, that searches and is searched.

Symbols: N points of the set that is searched, M queries.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PointTree:
    """A point set in Morton order with its tree of bounding boxes; see `kernels/neighbors_cpu.py`.

    Attributes:
        order: [N] int64, the set's points in the tree's order.
        coordinates: [3, N padded] float64, in that order, infinite where padded.
        starts: [levels + 1] int64, the first node of each level, and their number.
        lows, highs: [3, nodes] float64, corners of the nodes' boxes.
    """

    order: np.ndarray
    coordinates: np.ndarray
    starts: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    def __len__(self) -> int:
        return len(self.order)


def point_tree(points: np.ndarray) -> PointTree:  # [N, 3]
    """The tree of a set of at least one point.

    Raises:
        ValueError: another shape, no point, or one that is not finite.
    """
    points = np.ascontiguousarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {points.shape}, expected (N, 3)")
    if len(points) == 0:
        raise ValueError("no point to search")
    low = points.min(0)
    side = float((points.max(0) - low).max())
    if not np.isfinite(side):
        raise ValueError("points hold NaN or infinite values")
    from nfc_splat.rendering.kernels.neighbors_cpu import WIDE, fit_boxes, morton_codes
    from nfc_splat.rendering.kernels.threads import numba_threads

    numba_threads()
    order = np.argsort(morton_codes(points, low, 1.0 / side if side > 1e-300 else 0.0))
    coordinates = np.full((3, -(-len(points) // WIDE) * WIDE), np.inf)
    for axis in range(3):
        np.take(points[:, axis], order, out=coordinates[axis, : len(points)])
    sizes = [coordinates.shape[1] // WIDE]
    while sizes[-1] > WIDE:
        sizes.append(-(-sizes[-1] // WIDE))
    starts = np.cumsum([0, *(-(-size // WIDE) * WIDE for size in sizes)])
    lows, highs = np.empty((3, starts[-1])), np.empty((3, starts[-1]))
    fit_boxes(coordinates, starts, lows, highs, len(points))
    return PointTree(order, coordinates, starts, lows, highs)


def nearest_neighbors(queries: PointTree, points: PointTree) -> tuple[np.ndarray, np.ndarray]:
    """For every query the distance to the nearest of `points` ([M] float64) and its index ([M] int64).

    Both are in the order of the arrays that the trees were made of. Of several points at the same distance any may be
    named, always the same.
    """
    from nfc_splat.rendering.kernels import neighbors_cpu
    from nfc_splat.rendering.kernels.threads import numba_threads

    numba_threads()
    squared, place = np.empty(len(queries)), np.empty(len(queries), np.int64)
    wanted = np.ascontiguousarray(queries.coordinates[:, : len(queries)])
    neighbors_cpu.nearest_neighbors(
        wanted, points.coordinates, points.starts, points.lows, points.highs, squared, place
    )
    distances, indices = np.empty_like(squared), np.empty_like(place)
    distances[queries.order] = np.sqrt(squared)
    indices[queries.order] = points.order[place]
    return distances, indices
