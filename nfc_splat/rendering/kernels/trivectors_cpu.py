"""Sparse tri-vectors on the CPU, compiled by numba: queries and their gradients.

The forward pass takes samples as they come. Its inner loops run over ranks in vectors of `LANES`; what a tensor's three
lines give is multiplied and added up at once, so that nothing of the size [M, K, R] exists. The backward pass adds up
without atomics: pairs of a sample and a tensor near it are sorted by tensor, a thread takes whole tensors, each tensor
its pairs in the order of the samples, and computes anew what the forward pass did not keep. The result has the same
bits for any number of threads, and a tensor's lines and their gradient stay in the cache.

Symbols: M samples, L scales, K neighbours, N tensors of a scale, D cells of its lines, C ranks of them. A scale's
lines [N, 3, D + 1, C] are worked on as one flat row of numbers. `Shape` is what a scale needs besides.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.grid_cpu import prefetch
from nfc_splat.rendering.kernels.numba_tools import f32, inlined, kernel, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads
from nfc_splat.rendering.kernels.vectors_cpu import dot, load, plus_scaled, plus_times, scaled, store, times
from nfc_splat.rendering.tensor_cells import TensorCells

LANES = 8
CHUNKS = 32  # of the samples while sorting; fixed, because a tensor's order must not depend on the threads
AHEAD = 12  # samples between asking for a cell's tensors and using them
NEARNESS = f32(1e-6)  # units, added to a distance before it is inverted


class Shape(NamedTuple):
    """Numbers of a scale: half side of its tensors, cells per length, units per length, cells D, ranks C."""

    half: np.float32
    scale: np.float32
    per_unit: np.float32
    cells: int
    ranks: int


@inlined
def _node(offset, shape, clamp):
    """The node before a position relative to the tensor's centre, and how far beyond it: below 0 or above 1 outside of
    the tensor, or on its face with `clamp`."""
    place = (offset + shape.half) * shape.scale
    if clamp:
        place = min(max(place, f32(0)), f32(shape.cells))
    node = min(max(int(place), 0), shape.cells - 1)
    return node, place - f32(node)


@inlined
def _mix(lines, at, step, share, width):
    """Values [W] between two nodes, `step` numbers apart."""
    return plus_scaled(scaled(f32(1) - share, load(lines, at, width)), share, load(lines, at + step, width))


@inlined
def _mix_one(lines, at, step, share):
    return (f32(1) - share) * lines[at] + share * lines[at + step]


@inlined
def _relative(x, y, z, centers, tensor, shape):
    """Where a point is relative to a tensor's centre, and its weight there."""
    dx, dy, dz = x - centers[tensor, 0], y - centers[tensor, 1], z - centers[tensor, 2]
    return dx, dy, dz, f32(1) / (np.sqrt(dx * dx + dy * dy + dz * dz) * shape.per_unit + NEARNESS)


@inlined
def _lines_at(dx, dy, dz, tensor, shape, clamp):
    """Where a tensor's three lines are read, in numbers, and the shares of the nodes behind."""
    ix, u = _node(dx, shape, clamp)
    iy, v = _node(dy, shape, clamp)
    iz, w = _node(dz, shape, clamp)
    length = (shape.cells + 1) * shape.ranks
    first = 3 * tensor * length
    return (
        first + ix * shape.ranks,
        first + length + iy * shape.ranks,
        first + 2 * length + iz * shape.ranks,
        u,
        v,
        w,
    )


@inlined
def ask_for_tensors(rows, m, neighbors, level):
    """Ask for the memory of the tensors that a sample some steps ahead asks."""
    row = np.int64(rows[min(m + AHEAD, len(rows) - 1)])
    if row >= 0:
        prefetch(neighbors, (row * neighbors.shape[1] + level) * neighbors.shape[2])


@kernel
def density_of_scale(x, y, z, neighbors, row, level, centers, lines, shape, clamp):
    """A scale's density at a point of an active cell, and its share: the inverse of what the sum is divided by."""
    total, weights, ranks = f32(0), f32(0), shape.ranks
    for k in range(neighbors.shape[2]):
        tensor = np.int64(neighbors[row, level, k])
        if tensor < 0:
            break
        dx, dy, dz, weight = _relative(x, y, z, centers, tensor, shape)
        ax, ay, az, u, v, w = _lines_at(dx, dy, dz, tensor, shape, clamp)
        value, r = f32(0), 0
        if ranks >= LANES:
            a = times(_mix(lines, ax, ranks, u, LANES), _mix(lines, ay, ranks, v, LANES))
            products = times(a, _mix(lines, az, ranks, w, LANES))
            r = LANES
            while r + LANES <= ranks:
                a = times(_mix(lines, ax + r, ranks, u, LANES), _mix(lines, ay + r, ranks, v, LANES))
                products = plus_times(products, a, _mix(lines, az + r, ranks, w, LANES))
                r += LANES
            value = _total(products)
        while r < ranks:
            a = _mix_one(lines, ax + r, ranks, u) * _mix_one(lines, ay + r, ranks, v)
            value += a * _mix_one(lines, az + r, ranks, w)
            r += 1
        total += weight * value
        weights += weight
    share = f32(1) / max(weights, f32(1))
    return total * share, share


ONES = np.ones(LANES, np.float32)


@inlined
def _total(products):
    return dot(products, load(ONES, 0, LANES))


@kernel
def _features(x, y, z, neighbors, row, level, centers, lines, shape, clamp, values, column):
    """Write a scale's features at a point, C numbers from `column` of the flat `values` on; returns as `_density`."""
    weights, ranks = f32(0), shape.ranks
    values[column : column + ranks] = f32(0)
    for k in range(neighbors.shape[2]):
        tensor = np.int64(neighbors[row, level, k])
        if tensor < 0:
            break
        dx, dy, dz, weight = _relative(x, y, z, centers, tensor, shape)
        ax, ay, az, u, v, w = _lines_at(dx, dy, dz, tensor, shape, clamp)
        r = 0
        while r + LANES <= ranks:
            a = times(_mix(lines, ax + r, ranks, u, LANES), _mix(lines, ay + r, ranks, v, LANES))
            a = times(a, _mix(lines, az + r, ranks, w, LANES))
            store(values, column + r, plus_scaled(load(values, column + r, LANES), weight, a))
            r += LANES
        while r < ranks:
            a = _mix_one(lines, ax + r, ranks, u) * _mix_one(lines, ay + r, ranks, v)
            values[column + r] += weight * a * _mix_one(lines, az + r, ranks, w)
            r += 1
        weights += weight
    share = f32(1) / max(weights, f32(1))
    for r in range(ranks):
        values[column + r] *= share
    return share


@parallel_kernel
def sum_ranks(points, rows, neighbors, level, centers, lines, shape, clamp, values, shares):
    """Add one scale's densities to values [M]; fill shares [M], what the sums of weights are divided by, inverted."""
    for m in prange(len(points)):
        ask_for_tensors(rows, m, neighbors, level)
        row = rows[m]
        shares[m] = f32(0)
        if row >= 0:
            x, y, z = points[m, 0], points[m, 1], points[m, 2]
            value, shares[m] = density_of_scale(x, y, z, neighbors, row, level, centers, lines, shape, clamp)
            values[m] += value


@parallel_kernel
def keep_ranks(points, rows, neighbors, level, centers, lines, shape, clamp, values, columns, column, shares):
    """Fill C columns of values [M * columns] from `column` on, and shares [M]."""
    for m in prange(len(points)):
        ask_for_tensors(rows, m, neighbors, level)
        row, at = rows[m], m * columns + column
        shares[m] = f32(0)
        if row >= 0:
            x, y, z = points[m, 0], points[m, 1], points[m, 2]
            shares[m] = _features(x, y, z, neighbors, row, level, centers, lines, shape, clamp, values, at)
        else:
            values[at : at + shape.ranks] = f32(0)


@parallel_kernel
def sort_pairs(rows, used, neighbors, level, tensors):
    """Samples by tensor: order [pairs] int32, and where each tensor's begin [N + 1]. Only `used` [M] ones count."""
    count, most = len(rows), neighbors.shape[2]
    counts = np.zeros((CHUNKS, tensors), np.int64)
    for chunk in prange(CHUNKS):
        for m in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            ask_for_tensors(rows, m, neighbors, level)
            if used[m] and rows[m] >= 0:
                for k in range(most):
                    tensor = neighbors[rows[m], level, k]
                    if tensor < 0:
                        break
                    counts[chunk, tensor] += 1
    starts, total = np.empty(tensors + 1, np.int64), 0
    for tensor in range(tensors):
        starts[tensor] = total
        for chunk in range(CHUNKS):
            number, counts[chunk, tensor] = counts[chunk, tensor], total
            total += number
    starts[tensors] = total
    order = np.empty(total, np.int32)
    for chunk in prange(CHUNKS):
        for m in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            ask_for_tensors(rows, m, neighbors, level)
            if used[m] and rows[m] >= 0:
                for k in range(most):
                    tensor = neighbors[rows[m], level, k]
                    if tensor < 0:
                        break
                    order[counts[chunk, tensor]] = m
                    counts[chunk, tensor] += 1
    return order, starts


@kernel
def fair_parts(starts, parts, clearing):
    """Boundaries [parts + 1] that share out the tensors: each costs its pairs, and `clearing`."""
    tensors = len(starts) - 1
    total = starts[tensors] + clearing * tensors
    bounds = np.full(parts + 1, tensors, np.int64)
    bounds[0], part = 0, 1
    for tensor in range(tensors):
        while part < parts and starts[tensor] + clearing * tensor >= total * part / parts:
            bounds[part] = tensor
            part += 1
    return bounds


@inlined
def _add(grad, at, step, share, g):
    """Add a gradient [W] to two nodes."""
    store(grad, at, plus_scaled(load(grad, at, LANES), f32(1) - share, g))
    store(grad, at + step, plus_scaled(load(grad, at + step, LANES), share, g))


@inlined
def _add_one(grad, at, step, share, g):
    grad[at] += (f32(1) - share) * g
    grad[at + step] += share * g


@parallel_kernel
def scatter(points, factors, upstream, stride, column, order, starts, bounds, centers, lines, shape, clamp, v_lines):
    """Gradient of one scale's lines, overwritten.

    A sample's own gradient of rank r is factors[m] * upstream[m * stride + column + r]; `stride` is 0 where all
    samples share one.
    """
    ranks = shape.ranks
    size = 3 * (shape.cells + 1) * ranks
    for part in prange(len(bounds) - 1):
        for tensor in range(bounds[part], bounds[part + 1]):
            v_lines[tensor * size : (tensor + 1) * size] = f32(0)
            for pair in range(starts[tensor], starts[tensor + 1]):
                m = np.int64(order[pair])
                dx, dy, dz, weight = _relative(points[m, 0], points[m, 1], points[m, 2], centers, tensor, shape)
                ax, ay, az, u, v, w = _lines_at(dx, dy, dz, tensor, shape, clamp)
                factor, at = weight * factors[m], m * stride + column
                r = 0
                while r + LANES <= ranks:
                    a, b = _mix(lines, ax + r, ranks, u, LANES), _mix(lines, ay + r, ranks, v, LANES)
                    c = _mix(lines, az + r, ranks, w, LANES)
                    g = scaled(factor, load(upstream, at + r, LANES))
                    late = times(c, g)
                    _add(v_lines, ax + r, ranks, u, times(b, late))
                    _add(v_lines, ay + r, ranks, v, times(a, late))
                    _add(v_lines, az + r, ranks, w, times(times(a, b), g))
                    r += LANES
                while r < ranks:
                    one, two = _mix_one(lines, ax + r, ranks, u), _mix_one(lines, ay + r, ranks, v)
                    three, change = _mix_one(lines, az + r, ranks, w), factor * upstream[at + r]
                    _add_one(v_lines, ax + r, ranks, u, two * three * change)
                    _add_one(v_lines, ay + r, ranks, v, one * three * change)
                    _add_one(v_lines, az + r, ranks, w, one * two * change)
                    r += 1


@inlined
def _slope(offset, shape, clamp):
    """d place / d position: 0 beyond a face with `clamp`."""
    place = (offset + shape.half) * shape.scale
    return f32(0) if clamp and not (place >= f32(0) and place <= f32(shape.cells)) else shape.scale


@parallel_kernel
def slopes(
    points, rows, factors, upstream, stride, column, neighbors, level, centers, lines, shape, clamp, v_points
):  # fmt: skip
    """Add to v_points [M, 3] the gradient of one scale's values, given as to `scatter`; factors without the shares."""
    ranks = shape.ranks
    for m in prange(len(points)):
        row = rows[m]
        if row < 0:
            continue
        x, y, z = points[m, 0], points[m, 1], points[m, 2]
        value, weights = f32(0), f32(0)  # sum of w p, sum of w
        gx, gy, gz = f32(0), f32(0), f32(0)  # gradient of the first
        hx, hy, hz = f32(0), f32(0), f32(0)  # and of the second
        for k in range(neighbors.shape[2]):
            tensor = np.int64(neighbors[row, level, k])
            if tensor < 0:
                break
            dx, dy, dz, weight = _relative(x, y, z, centers, tensor, shape)
            ax, ay, az, u, v, w = _lines_at(dx, dy, dz, tensor, shape, clamp)
            product, px, py, pz = f32(0), f32(0), f32(0), f32(0)
            for r in range(ranks):
                a, b = _mix_one(lines, ax + r, ranks, u), _mix_one(lines, ay + r, ranks, v)
                c, g = _mix_one(lines, az + r, ranks, w), upstream[m * stride + column + r]
                product += a * b * c * g
                px += (lines[ax + ranks + r] - lines[ax + r]) * b * c * g
                py += (lines[ay + ranks + r] - lines[ay + r]) * a * c * g
                pz += (lines[az + ranks + r] - lines[az + r]) * a * b * g
            steepness = weight * shape.per_unit
            fall = -steepness * steepness / max(f32(1) / weight - NEARNESS, NEARNESS)
            value += weight * product
            weights += weight
            gx += weight * px * _slope(dx, shape, clamp) + fall * dx * product
            gy += weight * py * _slope(dy, shape, clamp) + fall * dy * product
            gz += weight * pz * _slope(dz, shape, clamp) + fall * dz * product
            hx, hy, hz = hx + fall * dx, hy + fall * dy, hz + fall * dz
        share = f32(1) / max(weights, f32(1))
        mean = value * share if weights > f32(1) else f32(0)
        v_points[m, 0] += factors[m] * share * (gx - mean * hx)
        v_points[m, 1] += factors[m] * share * (gy - mean * hy)
        v_points[m, 2] += factors[m] * share * (gz - mean * hz)


# ---------------------------------------------------------------------------------------------- what torch calls


class Setup(NamedTuple):
    """What the kernels are told of all scales; lines come as arguments of their own, for autograd."""

    neighbors: np.ndarray
    centers: tuple[np.ndarray, ...]
    shapes: tuple[Shape, ...]
    clamp: bool
    summed: bool


def make_setup(cells: TensorCells, lines: Sequence[Tensor], clamp: bool, summed: bool) -> Setup:
    shapes = tuple(
        Shape(f32(half), f32((line.shape[2] - 1) / (2 * half)), f32(1 / cells.unit), line.shape[2] - 1, line.shape[3])
        for half, line in zip(cells.halves, lines, strict=True)
    )
    return Setup(cells.neighbors.numpy(), tuple(c.numpy() for c in cells.centers), shapes, clamp, summed)


def flat_lines(lines: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(line.detach().contiguous().view(-1).numpy() for line in lines)


class Query(Function):
    @staticmethod
    def forward(
        ctx: Any, points: Tensor, rows: Tensor, setup: Setup, known: tuple[Tensor, Tensor] | None, *lines: Tensor
    ) -> Tensor:
        """known: the values and shares, where they have been found already."""
        numba_threads()
        values, shares = _query(points, rows, setup, lines) if known is None else known
        ctx.save_for_backward(points, *lines)  # raises in backward if one was changed since
        ctx.rows, ctx.setup, ctx.shares = rows, setup, shares
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_values: Tensor):
        points, *lines = ctx.saved_tensors
        setup, rows, threads = ctx.setup, ctx.rows.numpy(), numba_threads()
        place, upstream = points.detach().contiguous().numpy(), v_values.contiguous().numpy()
        v_points = torch.zeros_like(points) if ctx.needs_input_grad[0] else None
        used = upstream != 0 if setup.summed else upstream.any(1)
        v_lines, column, columns = [], 0, 0 if setup.summed else upstream.shape[1]
        for level, (line, flat) in enumerate(zip(lines, flat_lines(lines), strict=True)):
            shape, centers = setup.shapes[level], setup.centers[level]
            own = upstream if setup.summed else np.ones(len(rows), np.float32)
            source = np.ones(shape.ranks, np.float32) if setup.summed else upstream.reshape(-1)
            if ctx.needs_input_grad[4 + level]:
                order, starts = sort_pairs(rows, used, setup.neighbors, level, len(line))
                bounds = fair_parts(starts, threads, line[0].numel() / (10 * shape.ranks))
                v_line = torch.empty_like(line, memory_format=torch.contiguous_format)
                factors = own * ctx.shares[level].numpy()
                scatter(
                    place, factors, source, columns, column, order, starts, bounds, centers, flat, shape, setup.clamp,
                    v_line.view(-1).numpy(),
                )  # fmt: skip
                v_lines.append(v_line)
            else:
                v_lines.append(None)
            if v_points is not None:
                slopes(
                    place, rows, own, source, columns, column, setup.neighbors, level, centers, flat, shape,
                    setup.clamp, v_points.numpy(),
                )  # fmt: skip
            column += 0 if setup.summed else shape.ranks
        return v_points, None, None, None, *v_lines


def _query(points: Tensor, rows: Tensor, setup: Setup, lines: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Values [M] or [M, all C] and shares [L, M]."""
    columns, column = sum(shape.ranks for shape in setup.shapes), 0
    values = torch.zeros(len(points)) if setup.summed else torch.empty(len(points), columns)
    shares = torch.empty(len(lines), len(points))
    place, found = points.detach().contiguous().numpy(), rows.numpy()
    for level, flat in enumerate(flat_lines(lines)):
        shape = setup.shapes[level]
        scale = setup.neighbors, level, setup.centers[level], flat, shape, setup.clamp
        if setup.summed:
            sum_ranks(place, found, *scale, values.numpy(), shares[level].numpy())
        else:
            keep_ranks(place, found, *scale, values.view(-1).numpy(), columns, column, shares[level].numpy())
            column += shape.ranks
    return values, shares


def query_cpu(
    cells: TensorCells, lines: Sequence[Tensor], points: Tensor, rows: Tensor, summed: bool, clamp: bool
) -> Tensor:
    """See `nfc_splat.rendering.trivectors.query_trivectors`."""
    return Query.apply(points, rows.contiguous(), make_setup(cells, lines, clamp, summed), None, *lines)
