"""Numba kernels: exact nearest neighbours between two point sets, by a tree of bounding boxes.

Points are put in Morton order and cut into blocks of `WIDE`; a block's bounding box is a node of the lowest level, and
`WIDE` consecutive nodes are the children of one node of the next. Every level is padded to a multiple of `WIDE` with
boxes (and points) at infinity, so that each step of a search is one loop with a constant trip count.
Queries run in their own Morton order and start from the neighbour of the query before: a bound that is nearly the
answer. The order is cut at fixed places, so that the answer does not depend on the number of threads.

Symbols: N points, M queries, B nodes of all levels together.
"""

import numba
import numpy as np

from nfc_splat.rendering.kernels.numba_tools import inlined, kernel, parallel_kernel

WIDE = 8
_RUN = 1024  # queries that share a start
_STACK = 8 * 24  # 8^24 points


@inlined
def _spread(value):
    """The 21 low bits of a uint64, two zeros between each."""
    value &= np.uint64(0x1FFFFF)
    value = (value | (value << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
    value = (value | (value << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
    value = (value | (value << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
    value = (value | (value << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
    return (value | (value << np.uint64(2))) & np.uint64(0x1249249249249249)


@parallel_kernel
def morton_codes(
    points,  # [N, 3] float64, finite
    low,  # [3]
    inverse_size,  # 1 / longest side of the box, 0 for a single place
):
    """[N] uint64: the bits of x, y and z in turn, 21 of each."""
    codes = np.empty(len(points), np.uint64)
    for i in numba.prange(len(points)):
        code = np.uint64(0)
        for axis in range(3):
            unit = (points[i, axis] - low[axis]) * inverse_size
            cell = np.uint64(min(max(unit, 0.0), 1.0) * 2097151.0)
            code |= _spread(cell) << np.uint64(axis)
        codes[i] = code
    return codes


@kernel
def fit_boxes(
    coordinates,  # [3, N padded] float64, in Morton order
    starts,  # [levels + 1] first node of each level
    lows,  # [3, B], filled
    highs,  # [3, B], filled
    count,  # N
):
    """Bounding boxes of all levels, the lowest first. What is padding is (inf, -inf)."""
    lows[:] = np.inf
    highs[:] = -np.inf
    for i in range(count):
        node = i // WIDE
        for axis in range(3):
            lows[axis, node] = min(lows[axis, node], coordinates[axis, i])
            highs[axis, node] = max(highs[axis, node], coordinates[axis, i])
    for level in range(1, len(starts) - 1):
        for child in range(starts[level - 1], starts[level]):
            node = starts[level] + (child - starts[level - 1]) // WIDE
            for axis in range(3):
                lows[axis, node] = min(lows[axis, node], lows[axis, child])
                highs[axis, node] = max(highs[axis, node], highs[axis, child])


@parallel_kernel
def nearest_neighbors(
    queries,  # [3, M] float64, in Morton order
    coordinates,  # [3, N padded]
    starts,  # [levels + 1]
    lows,  # [3, B]
    highs,  # [3, B]
    squared,  # [M] float64, filled: squared distance to the nearest point
    nearest,  # [M] int64, filled: its place in `coordinates`
):
    """Search the tree for every query."""
    qx, qy, qz = queries[0], queries[1], queries[2]
    px, py, pz = coordinates[0], coordinates[1], coordinates[2]
    lx, ly, lz = lows[0], lows[1], lows[2]
    hx, hy, hz = highs[0], highs[1], highs[2]
    top = len(starts) - 2
    count = queries.shape[1]
    for run in numba.prange((count + _RUN - 1) // _RUN):
        gaps = np.empty(WIDE)
        waiting = np.empty(_STACK, np.int64)
        waiting_level = np.empty(_STACK, np.int64)
        waiting_gap = np.empty(_STACK)
        found = 0
        for i in range(run * _RUN, min(count, (run + 1) * _RUN)):
            x, y, z = qx[i], qy[i], qz[i]
            best = (px[found] - x) ** 2 + (py[found] - y) ** 2 + (pz[found] - z) ** 2
            waiting[0], waiting_level[0], waiting_gap[0] = 0, top, 0.0
            size = 1
            while size > 0:
                size -= 1
                if waiting_gap[size] >= best:
                    continue
                level, first = waiting_level[size], waiting[size] * WIDE
                if level < 0:
                    for k in range(WIDE):
                        gaps[k] = (px[first + k] - x) ** 2 + (py[first + k] - y) ** 2 + (pz[first + k] - z) ** 2
                    for k in range(WIDE):
                        if gaps[k] < best:
                            best, found = gaps[k], first + k
                    continue
                node = starts[level] + first
                for k in range(WIDE):
                    dx = max(max(lx[node + k] - x, x - hx[node + k]), 0.0)
                    dy = max(max(ly[node + k] - y, y - hy[node + k]), 0.0)
                    dz = max(max(lz[node + k] - z, z - hz[node + k]), 0.0)
                    gaps[k] = dx * dx + dy * dy + dz * dz
                closest, place = np.inf, -1
                for k in range(WIDE):
                    if gaps[k] < best:
                        waiting[size], waiting_level[size], waiting_gap[size] = first + k, level - 1, gaps[k]
                        if gaps[k] < closest:
                            closest, place = gaps[k], size
                        size += 1
                if place >= 0:  # the closest is searched first
                    last = size - 1
                    node, gap = waiting[last], waiting_gap[last]
                    waiting[last], waiting_gap[last] = waiting[place], waiting_gap[place]
                    waiting[place], waiting_gap[place] = node, gap
            squared[i], nearest[i] = best, found
