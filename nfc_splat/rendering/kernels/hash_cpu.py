"""The hash encoding on the CPU: lookups, their Jacobian and both scatters.

One level is worked on at a time, so that its part of the table stays in the cache, and its points in blocks: first the
rows and weights of a block's corners, which vectorises, then the lookups. The scatter gives whole levels to threads
and adds points in order: no two threads write the same row, and the sums are the same for every number of threads.

Symbols: M points, L levels, F features per level. Corner c = bx + 2 by + 4 bz of a cell. Points are planar, [3, M]
padded to whole blocks. The arrays of a level (scales, resolutions, starts, sizes, hashed) are `HashLevels.arrays`.
"""

import sys
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from nfc_splat.rendering.hash_encoding import HashLevels
from nfc_splat.rendering.kernels.numba_tools import f32, kernel, parallel_kernel, reduction
from nfc_splat.rendering.kernels.threads import numba_threads

BLOCK = 256
CACHE_LINE = 16  # numbers
GATHER_BELOW = 0.8  # share of points with a gradient under which the others are left out first
u32, i32 = np.uint32, np.int32
PRIME_Y, PRIME_Z = u32(2654435761), u32(805459861)


@kernel
def make_planar(points):
    """Points [M, 3] as [3, M'], filled up with zeros to whole blocks: the layout that the kernels below read."""
    count = points.shape[0]
    planar = np.empty((3, -(-count // BLOCK) * BLOCK), f32)
    for axis in range(3):
        for m in range(count):
            planar[axis, m] = points[m, axis]
        planar[axis, count:] = f32(0)
    return planar


@kernel
def _active_rows(*gradients):
    """Rows in which a gradient [M, K] is not all zero: samples that no pixel sees have no part in a scatter."""
    count = gradients[0].shape[0]
    rows, found = np.empty(count, np.int64), 0
    for m in range(count):
        active = False
        for gradient in gradients:
            for value in gradient[m]:
                if value != f32(0):  # NaN counts
                    active = True
                    break
        if active:
            rows[found] = m
            found += 1
    return rows[:found]


@kernel
def _fractions(planar, first, scale, cells, fractions):
    """Cell and place within it, [3, BLOCK] each; NaN stays in the fraction and falls into cell 0."""
    for axis in range(3):
        block, cell, fraction = planar[axis, first : first + BLOCK], cells[axis], fractions[axis]
        for p in range(BLOCK):
            x = block[p] * scale + f32(0.5)
            cell[p] = i32(x if x > f32(0) else f32(0))
            fraction[p] = x - f32(cell[p])


@kernel
def _hashed_rows(cells, size, rows):
    """Rows of the eight corners [8, BLOCK] in a level that is a hash table (Instant-NGP, Eq. 4)."""
    mask = u32(size - 1)
    for p in range(BLOCK):
        x0, y0, z0 = u32(cells[0, p]), u32(u32(cells[1, p]) * PRIME_Y), u32(u32(cells[2, p]) * PRIME_Z)
        x1, y1, z1 = u32(x0 + u32(1)), u32(y0 + PRIME_Y), u32(z0 + PRIME_Z)
        a, b, c, d = u32(y0 ^ z0), u32(y1 ^ z0), u32(y0 ^ z1), u32(y1 ^ z1)
        rows[0, p], rows[1, p] = i32((x0 ^ a) & mask), i32((x1 ^ a) & mask)
        rows[2, p], rows[3, p] = i32((x0 ^ b) & mask), i32((x1 ^ b) & mask)
        rows[4, p], rows[5, p] = i32((x0 ^ c) & mask), i32((x1 ^ c) & mask)
        rows[6, p], rows[7, p] = i32((x0 ^ d) & mask), i32((x1 ^ d) & mask)


@kernel
def _dense_rows(cells, resolution, size, rows):
    """Rows of the eight corners [8, BLOCK] in a level that has a row per vertex; the last corners wrap around."""
    n, top = i32(resolution), i32(size)
    square = i32(n * n)
    for p in range(BLOCK):
        start = i32(cells[0, p] + cells[1, p] * n + cells[2, p] * square)
        for c in range(8):
            row = i32(start + (c & 1) + ((c >> 1) & 1) * n + (c >> 2) * square)
            rows[c, p] = row - (top if row >= top else i32(0))


@kernel
def _weights(fractions, weights):
    """Trilinear weights of the eight corners, [8, BLOCK]."""
    for p in range(BLOCK):
        x, y, z = fractions[0, p], fractions[1, p], fractions[2, p]
        u, v, w = f32(1) - x, f32(1) - y, f32(1) - z
        a, b, c, d = v * w, y * w, v * z, y * z
        weights[0, p], weights[1, p] = u * a, x * a
        weights[2, p], weights[3, p] = u * b, x * b
        weights[4, p], weights[5, p] = u * c, x * c
        weights[6, p], weights[7, p] = u * d, x * d


@kernel
def _corners(planar, first, level, arrays, cells, fractions, rows):
    """Fractions and rows of the block of points that starts at `first`."""
    scales, resolutions, _, sizes, hashed = arrays
    _fractions(planar, first, scales[level], cells, fractions)
    if hashed[level]:
        _hashed_rows(cells, sizes[level], rows)
    else:
        _dense_rows(cells, resolutions[level], sizes[level], rows)


@reduction
def _bring_to_cache(table, points):
    """Read a level in order, which is faster than missing the cache at random, if enough of it will be needed."""
    total = f32(0)
    flat = table.reshape(-1)
    if points * 8 >= flat.size // CACHE_LINE:
        for i in range(0, flat.size, CACHE_LINE):
            total += flat[i]
    return total


@kernel
def _lookup_one(table, rows, weights, values, f):
    for p in range(values.shape[0]):
        a = f32(0)
        for c in range(8):
            a += weights[c, p] * table[rows[c, p], f]
        values[p, f] = a


@kernel
def _lookup_two(table, rows, weights, values, f):
    for p in range(values.shape[0]):
        a, b = f32(0), f32(0)
        for c in range(8):
            row, weight = rows[c, p], weights[c, p]
            a += weight * table[row, f]
            b += weight * table[row, f + 1]
        values[p, f], values[p, f + 1] = a, b


@kernel
def _lookup_four(table, rows, weights, values, f):
    for p in range(values.shape[0]):
        a, b, c, d = f32(0), f32(0), f32(0), f32(0)
        for corner in range(8):
            row, weight = rows[corner, p], weights[corner, p]
            a += weight * table[row, f]
            b += weight * table[row, f + 1]
            c += weight * table[row, f + 2]
            d += weight * table[row, f + 3]
        values[p, f], values[p, f + 1], values[p, f + 2], values[p, f + 3] = a, b, c, d


@kernel
def _lookup(table, rows, weights, values):
    """values[p] = sum_c weights[c, p] table[rows[c, p]], [P, F] of a table [rows, F]."""
    f, features = 0, table.shape[1]
    while features - f >= 4:
        _lookup_four(table, rows, weights, values, f)
        f += 4
    if features - f >= 2:
        _lookup_two(table, rows, weights, values, f)
        f += 2
    if features - f == 1:
        _lookup_one(table, rows, weights, values, f)


@kernel
def _scatter_one(table, rows, weights, values, f):
    for p in range(values.shape[0]):
        a = values[p, f]
        for c in range(8):
            table[rows[c, p], f] += weights[c, p] * a


@kernel
def _scatter_two(table, rows, weights, values, f):
    for p in range(values.shape[0]):
        a, b = values[p, f], values[p, f + 1]
        for c in range(8):
            row, weight = rows[c, p], weights[c, p]
            table[row, f] += weight * a
            table[row, f + 1] += weight * b


@kernel
def _scatter_four(table, rows, weights, values, f):
    for p in range(values.shape[0]):
        a, b, c, d = values[p, f], values[p, f + 1], values[p, f + 2], values[p, f + 3]
        for corner in range(8):
            row, weight = rows[corner, p], weights[corner, p]
            table[row, f] += weight * a
            table[row, f + 1] += weight * b
            table[row, f + 2] += weight * c
            table[row, f + 3] += weight * d


@kernel
def _scatter(table, rows, weights, values):
    """table[rows[c, p]] += weights[c, p] values[p]: the transpose of `_lookup`."""
    f, features = 0, table.shape[1]
    while features - f >= 4:
        _scatter_four(table, rows, weights, values, f)
        f += 4
    if features - f >= 2:
        _scatter_two(table, rows, weights, values, f)
        f += 2
    if features - f == 1:
        _scatter_one(table, rows, weights, values, f)


@kernel
def _interpolate_with_slopes(corners, fractions, scale, results):
    """From a feature at the corners [8, BLOCK] to its value and its three derivatives by position, [4, BLOCK]."""
    for p in range(BLOCK):
        x, y, z = fractions[0, p], fractions[1, p], fractions[2, p]
        a, b = corners[1, p] - corners[0, p], corners[3, p] - corners[2, p]
        c, d = corners[5, p] - corners[4, p], corners[7, p] - corners[6, p]
        low, high = a + y * (b - a), c + y * (d - c)
        results[1, p] = scale * (low + z * (high - low))
        a, b = corners[0, p] + x * a, corners[2, p] + x * b
        c, d = corners[4, p] + x * c, corners[6, p] + x * d
        results[2, p] = scale * ((b - a) + z * ((d - c) - (b - a)))
        low, high = a + y * (b - a), c + y * (d - c)
        results[3, p] = scale * (high - low)
        results[0, p] = low + z * (high - low)


@kernel
def _interpolate_with_slopes_backward(v_results, fractions, scale, v_corners):
    """The transpose of `_interpolate_with_slopes`: [4, BLOCK] -> [8, BLOCK]."""
    for p in range(BLOCK):
        x, y, z = fractions[0, p], fractions[1, p], fractions[2, p]
        v, vx = v_results[0, p], scale * v_results[1, p]
        vy, vz = scale * v_results[2, p], scale * v_results[3, p]
        for bz in range(2):
            share = z if bz == 1 else f32(1) - z
            by_value, by_x, by_y = share * v + (vz if bz == 1 else -vz), share * vx, share * vy
            for by in range(2):
                share = y if by == 1 else f32(1) - y
                value, slope = share * by_value + (by_y if by == 1 else -by_y), share * by_x
                v_corners[4 * bz + 2 * by, p] = (f32(1) - x) * value - slope
                v_corners[4 * bz + 2 * by + 1, p] = x * value + slope


@parallel_kernel
def encode(planar, table, arrays, features, touched, workers):
    """Features of every level at every point.

    Args:
        planar: [3, M padded].
        table: [rows, F].
        arrays: the levels.
        features: [M, L * F], filled in.
        touched: [workers] filled with numbers without a meaning.
    """
    count, blocks, width = features.shape[0], planar.shape[1] // BLOCK, table.shape[1]
    for worker in prange(workers):
        cells, fractions = np.empty((3, BLOCK), i32), np.empty((3, BLOCK), f32)
        rows, weights = np.empty((8, BLOCK), i32), np.empty((8, BLOCK), f32)
        low, high = blocks * worker // workers, blocks * (worker + 1) // workers
        for level in range(len(arrays[0])):
            part = table[arrays[2][level] : arrays[2][level] + arrays[3][level]]
            touched[worker] += _bring_to_cache(part, (high - low) * BLOCK)
            for first in range(low * BLOCK, high * BLOCK, BLOCK):
                _corners(planar, first, level, arrays, cells, fractions, rows)
                _weights(fractions, weights)
                columns = features[first : min(first + BLOCK, count), level * width : (level + 1) * width]
                _lookup(part, rows, weights, columns)


@parallel_kernel
def encode_with_jacobian(planar, table, arrays, features, jacobian, touched, workers):
    """As `encode`, and jacobian [M, L * F, 3], filled in."""
    count, blocks, width = features.shape[0], planar.shape[1] // BLOCK, table.shape[1]
    for worker in prange(workers):
        cells, fractions = np.empty((3, BLOCK), i32), np.empty((3, BLOCK), f32)
        rows, corners, results = np.empty((8, BLOCK), i32), np.empty((8, BLOCK), f32), np.empty((4, BLOCK), f32)
        low, high = blocks * worker // workers, blocks * (worker + 1) // workers
        for level in range(len(arrays[0])):
            part = table[arrays[2][level] : arrays[2][level] + arrays[3][level]]
            touched[worker] += _bring_to_cache(part, (high - low) * BLOCK)
            for first in range(low * BLOCK, high * BLOCK, BLOCK):
                _corners(planar, first, level, arrays, cells, fractions, rows)
                for f in range(width):
                    for p in range(BLOCK):
                        for c in range(8):
                            corners[c, p] = part[rows[c, p], f]
                    _interpolate_with_slopes(corners, fractions, arrays[0][level], results)
                    column = level * width + f
                    for p in range(min(BLOCK, count - first)):
                        features[first + p, column] = results[0, p]
                        for axis in range(3):
                            jacobian[first + p, column, axis] = results[1 + axis, p]


@parallel_kernel
def scatter_features(planar, arrays, order, v_features, v_table, workers):
    """Gradient of the table [rows, F], overwritten, from that of the features [M, L * F]."""
    count, blocks, width = v_features.shape[0], planar.shape[1] // BLOCK, v_table.shape[1]
    for worker in prange(workers):
        cells, fractions = np.empty((3, BLOCK), i32), np.empty((3, BLOCK), f32)
        rows, weights = np.empty((8, BLOCK), i32), np.empty((8, BLOCK), f32)
        for turn in range(worker, len(order), workers):
            level = order[turn]
            part = v_table[arrays[2][level] : arrays[2][level] + arrays[3][level]]
            part[:] = f32(0)
            for first in range(0, blocks * BLOCK, BLOCK):
                _corners(planar, first, level, arrays, cells, fractions, rows)
                _weights(fractions, weights)
                columns = v_features[first : min(first + BLOCK, count), level * width : (level + 1) * width]
                _scatter(part, rows, weights, columns)


@parallel_kernel
def scatter_jacobian(planar, arrays, order, v_features, v_jacobian, v_table, workers):
    """As `scatter_features`, with the gradient of the Jacobian [M, L * F, 3] as well."""
    count, blocks, width = v_features.shape[0], planar.shape[1] // BLOCK, v_table.shape[1]
    for worker in prange(workers):
        cells, fractions = np.empty((3, BLOCK), i32), np.empty((3, BLOCK), f32)
        rows, v_corners = np.empty((8, BLOCK), i32), np.empty((8, BLOCK), f32)
        v_results = np.zeros((4, BLOCK), f32)
        for turn in range(worker, len(order), workers):
            level = order[turn]
            part = v_table[arrays[2][level] : arrays[2][level] + arrays[3][level]]
            part[:] = f32(0)
            for first in range(0, blocks * BLOCK, BLOCK):
                _corners(planar, first, level, arrays, cells, fractions, rows)
                here = min(BLOCK, count - first)
                for f in range(width):
                    column = level * width + f
                    for p in range(here):
                        v_results[0, p] = v_features[first + p, column]
                        for axis in range(3):
                            v_results[1 + axis, p] = v_jacobian[first + p, column, axis]
                    _interpolate_with_slopes_backward(v_results, fractions, arrays[0][level], v_corners)
                    for p in range(here):
                        for c in range(8):
                            part[rows[c, p], f] += v_corners[c, p]


UNUSED = 3  # references to a spare array that no tensor stands on: the dictionary's, a local name's, a call's
_spare: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _gradient(table: Tensor) -> Tensor:
    """An uninitialised gradient for `table`: for a parameter, in the memory of its last one if nobody holds that.

    A gradient as large as the table costs more in fresh pages than in additions. The optimiser drops it after every
    step; the array below outlives it, and its reference count tells whether a tensor still stands on it.
    """
    if not table.is_leaf:
        return torch.from_numpy(np.empty(table.shape, np.float32))
    array = _spare.get(table)
    if array is None or array.shape != table.shape or sys.getrefcount(array) > UNUSED:
        array = np.empty(table.shape, np.float32)
        _spare[table] = array
    return torch.from_numpy(array)


def _turns(levels: HashLevels, workers: int) -> np.ndarray:
    """Levels in an order such that every `workers`-th one from any start makes about the same work."""
    heaviest = sorted(range(levels.n_levels), key=lambda level: (-levels.sizes[level], level))
    order: list[int] = []
    for start in range(0, len(heaviest), workers):
        group = heaviest[start : start + workers]
        order += group[::-1] if len(group) == workers and (start // workers) % 2 else group
    return np.array(order, np.int64)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _scatter_to(
    table: Tensor, levels: HashLevels, planar: np.ndarray, v_features: Tensor, v_jacobian: Tensor | None = None
) -> Tensor:
    """The gradient of `table` from those of what was read from it."""
    workers = numba_threads()
    v_table, order = _gradient(table), _turns(levels, workers)
    gradients = [v_features] if v_jacobian is None else [v_features, v_jacobian]
    rows = _active_rows(*(_array(gradient.flatten(1)) for gradient in gradients))
    if len(rows) < GATHER_BELOW * len(v_features):
        gradients = [gradient[torch.from_numpy(rows)] for gradient in gradients]
        planar = make_planar(np.ascontiguousarray(planar[:, rows].T))
    arrays = [_array(gradient) for gradient in gradients]
    scatter = scatter_features if v_jacobian is None else scatter_jacobian
    scatter(planar, levels.arrays, order, *arrays, v_table.numpy(), workers)
    return v_table


class _Encode(Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
        workers = numba_threads()
        ctx.levels, ctx.planar = levels, make_planar(_array(points))
        ctx.save_for_backward(table)
        features = torch.empty(len(points), levels.n_levels * levels.n_features)
        touched = np.zeros(workers, np.float32)
        encode(ctx.planar, _array(table), levels.arrays, features.numpy(), touched, workers)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor):
        (table,) = ctx.saved_tensors
        return None, _scatter_to(table, ctx.levels, ctx.planar, v_features), None


class _EncodeWithJacobian(Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, levels: HashLevels) -> tuple[Tensor, Tensor]:
        workers = numba_threads()
        ctx.levels, ctx.planar = levels, make_planar(_array(points))
        width = levels.n_levels * levels.n_features
        features, jacobian = torch.empty(len(points), width), torch.empty(len(points), width, 3)
        touched = np.zeros(workers, np.float32)
        encode_with_jacobian(
            ctx.planar, _array(table), levels.arrays, features.numpy(), jacobian.numpy(), touched, workers
        )
        ctx.save_for_backward(table, jacobian)
        ctx.set_materialize_grads(False)
        return features, jacobian

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor | None, v_jacobian: Tensor | None):
        table, jacobian = ctx.saved_tensors
        v_points = v_table = None
        if v_features is None:
            v_features = jacobian.new_zeros(jacobian.shape[:2])
        if ctx.needs_input_grad[0]:
            v_points = torch.einsum("mk,mka->ma", v_features, jacobian)
        if ctx.needs_input_grad[1]:
            v_table = _scatter_to(table, ctx.levels, ctx.planar, v_features, v_jacobian)
        return v_points, v_table, None


def hash_encode_cpu(points: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """`hash_encode` for float32 tensors in main memory; see there."""
    if points.requires_grad:  # its gradient is made of the Jacobian
        return _EncodeWithJacobian.apply(points, table, levels)[0]
    return _Encode.apply(points, table, levels)


def hash_encode_with_jacobian_cpu(points: Tensor, table: Tensor, levels: HashLevels) -> tuple[Tensor, Tensor]:
    """`hash_encode_with_jacobian` for float32 tensors in main memory; see there."""
    return _EncodeWithJacobian.apply(points, table, levels)
