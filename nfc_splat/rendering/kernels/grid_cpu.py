"""Voxel grids on the CPU, compiled by numba: trilinear interpolation, its gradients, and total variation.

A random point's eight nodes lie in four places of a grid that no cache holds, so the time goes into waiting for memory:
the nodes of the points ahead are asked for early. The gradient is added up without atomics: the points are sorted by
their cell along x, a cell touches two planes of nodes, and the even cells share no plane with each other, nor do the
odd ones. So first the even cells run in parallel and then the odd ones, each cell's points in the order given: the
result has the same bits for any number of threads.

Symbols: X, Y, Z nodes along the axes, C channels, M points. A grid [X, Y, Z, C] is worked on as one flat row of
numbers. Bin b of the sort holds the cell from plane b - 1 to plane b, b = 0 .. X; bin X + 1 the points that touch no
node.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.numba_tools import f32, inlined, kernel, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads

CHUNKS = 32  # of the points while sorting; fixed, because the order within a bin must not depend on the threads
AHEAD = 8  # points between asking for memory and using it
LINE = 16  # numbers per cache line


@intrinsic
def prefetch(typing_context, array, offset):
    """Ask for the cache line that holds element `offset` of a flat array."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address], signature)
        where = builder.bitcast(builder.gep(data, [arguments[1]]), address)
        builder.call(function, [where, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@inlined
def _place(points, i, low, scale):
    """Point i in units of nodes."""
    x = (points[3 * i] - low[0]) * scale[0]
    y = (points[3 * i + 1] - low[1]) * scale[1]
    z = (points[3 * i + 2] - low[2]) * scale[2]
    return x, y, z


@inlined
def amid(x, y, z, size):
    """Whether all eight nodes exist; False for NaN."""
    return x >= 0 and y >= 0 and z >= 0 and x < size[0] - 1 and y < size[1] - 1 and z < size[2] - 1


@inlined
def touches(x, y, z, size):
    """Whether any of the eight nodes exists; False for NaN."""
    return x > -1 and y > -1 and z > -1 and x < size[0] and y < size[1] and z < size[2]


@inlined
def corner_of(x, y, z, corner, size):
    """Index of a point's node number `corner` among all nodes (-1 where there is none) and its weight."""
    ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    fx, fy, fz = x - f32(ix), y - f32(iy), z - f32(iz)
    jx, jy, jz = ix + (corner >> 2), iy + ((corner >> 1) & 1), iz + (corner & 1)
    weight = fx if corner >> 2 else f32(1) - fx
    weight *= fy if (corner >> 1) & 1 else f32(1) - fy
    weight *= fz if corner & 1 else f32(1) - fz
    inside = jx >= 0 and jy >= 0 and jz >= 0 and jx < size[0] and jy < size[1] and jz < size[2]
    return ((jx * size[1] + jy) * size[2] + jz if inside else -1), weight


@kernel
def _ask(grid, size, points, i, low, scale, channels):
    """Ask for the memory of a point's eight nodes."""
    x, y, z = _place(points, i, low, scale)
    if amid(x, y, z, size):
        dy, dx = channels * size[2], channels * size[2] * size[1]
        first = int(x) * dx + int(y) * dy + int(z) * channels
        last = first + 2 * channels - 1
        for offset in range(0, 2 * channels, LINE):
            prefetch(grid, first + offset)
            prefetch(grid, first + dy + offset)
            prefetch(grid, first + dx + offset)
            prefetch(grid, first + dx + dy + offset)
        if channels > 4:
            prefetch(grid, last)
            prefetch(grid, last + dy)
            prefetch(grid, last + dx)
            prefetch(grid, last + dx + dy)


@kernel
def _clear(values):
    values[:] = f32(0)


# The kernels below are made once per number of channels: as a constant it lets the loops over channels vectorise.


@cache
def gather_kernel(channels: int):
    """The kernel (grid, size, points, low, scale, values): values [M * C] of a grid at points."""

    @parallel_kernel
    def gather(grid, size, points, low, scale, values):
        count = len(points) // 3
        dy, dx = channels * size[2], channels * size[2] * size[1]
        for i in prange(count):
            _ask(grid, size, points, min(i + AHEAD, count - 1), low, scale, channels)
            x, y, z = _place(points, i, low, scale)
            if amid(x, y, z, size):
                ix, iy, iz = int(x), int(y), int(z)
                fx, fy, fz = x - f32(ix), y - f32(iy), z - f32(iz)
                w00, w01 = (f32(1) - fx) * (f32(1) - fy), (f32(1) - fx) * fy
                w10, w11 = fx * (f32(1) - fy), fx * fy
                a = ix * dx + iy * dy + iz * channels
                b, c, d = a + dy, a + dx, a + dx + dy
                for k in range(channels):
                    near = w00 * grid[a + k] + w01 * grid[b + k] + w10 * grid[c + k] + w11 * grid[d + k]
                    m = k + channels
                    far = w00 * grid[a + m] + w01 * grid[b + m] + w10 * grid[c + m] + w11 * grid[d + m]
                    values[i * channels + k] = (f32(1) - fz) * near + fz * far
                continue
            for k in range(channels):
                values[i * channels + k] = f32(0)
            if touches(x, y, z, size):
                for corner in range(8):
                    node, weight = corner_of(x, y, z, corner, size)
                    if node >= 0:
                        for k in range(channels):
                            values[i * channels + k] += weight * grid[node * channels + k]

    return gather


@cache
def scatter_kernel(channels: int):
    """The kernel (grad, size, points, low, scale, v_values, order, starts, bounds): adds to grad [X * Y * Z * C] what
    the points in every second bin contribute. The first pass, over the even bins, clears their planes before."""

    @parallel_kernel
    def scatter(grad, size, points, low, scale, v_values, order, starts, bounds):
        dy, dx = channels * size[2], channels * size[2] * size[1]
        for piece in prange(len(bounds) - 1):
            for bin in range(bounds[piece], bounds[piece + 1], 2):
                if bin % 2 == 0:
                    _clear(grad[max(bin - 1, 0) * dx : min(bin + 1, size[0]) * dx])
                for at in range(starts[bin], starts[bin + 1]):
                    ahead = order[min(at + AHEAD, starts[bin + 1] - 1)]
                    prefetch(v_values, ahead * channels)
                    _ask(grad, size, points, ahead, low, scale, channels)
                    i = order[at]
                    x, y, z = _place(points, i, low, scale)
                    if amid(x, y, z, size):
                        ix, iy, iz = int(x), int(y), int(z)
                        fx, fy, fz = x - f32(ix), y - f32(iy), z - f32(iz)
                        gx, gy, gz = f32(1) - fx, f32(1) - fy, f32(1) - fz
                        a = ix * dx + iy * dy + iz * channels
                        b, c, d = a + dy, a + dx, a + dx + dy
                        for k in range(channels):
                            near, far = gz * v_values[i * channels + k], fz * v_values[i * channels + k]
                            m = k + channels
                            grad[a + k] += gx * gy * near
                            grad[a + m] += gx * gy * far
                            grad[b + k] += gx * fy * near
                            grad[b + m] += gx * fy * far
                            grad[c + k] += fx * gy * near
                            grad[c + m] += fx * gy * far
                            grad[d + k] += fx * fy * near
                            grad[d + m] += fx * fy * far
                        continue
                    for corner in range(8):
                        node, weight = corner_of(x, y, z, corner, size)
                        if node >= 0:
                            for k in range(channels):
                                grad[node * channels + k] += weight * v_values[i * channels + k]

    return scatter


@cache
def slope_kernel(channels: int):
    """The kernel (grid, size, points, low, scale, v_values, v_points): the gradient [M * 3] with respect to points."""

    @parallel_kernel
    def slope(grid, size, points, low, scale, v_values, v_points):
        count = len(points) // 3
        for i in prange(count):
            _ask(grid, size, points, min(i + AHEAD, count - 1), low, scale, channels)
            x, y, z = _place(points, i, low, scale)
            vx, vy, vz = f32(0), f32(0), f32(0)
            if touches(x, y, z, size):
                fx, fy, fz = x - np.floor(x), y - np.floor(y), z - np.floor(z)
                for corner in range(8):
                    node, _ = corner_of(x, y, z, corner, size)
                    if node >= 0:
                        value = f32(0)
                        for k in range(channels):
                            value += v_values[i * channels + k] * grid[node * channels + k]
                        wx = fx if corner >> 2 else f32(1) - fx
                        wy = fy if (corner >> 1) & 1 else f32(1) - fy
                        wz = fz if corner & 1 else f32(1) - fz
                        vx += value * wy * wz if corner >> 2 else -value * wy * wz
                        vy += value * wx * wz if (corner >> 1) & 1 else -value * wx * wz
                        vz += value * wx * wy if corner & 1 else -value * wx * wy
            v_points[3 * i] = vx * scale[0]
            v_points[3 * i + 1] = vy * scale[1]
            v_points[3 * i + 2] = vz * scale[2]

    return slope


@parallel_kernel
def sort_by_cell(points, low, scale, size):
    """Indices [M] of the points by bin, in their own order within a bin, and where each bin starts [X + 3]."""
    count, bins = len(points) // 3, size[0] + 2
    counts, bin_of = np.zeros((CHUNKS, bins), np.int64), np.empty(count, np.int32)
    for chunk in prange(CHUNKS):
        for i in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            x, y, z = _place(points, i, low, scale)
            bin = int(np.floor(x)) + 1 if touches(x, y, z, size) else bins - 1
            bin_of[i] = bin
            counts[chunk, bin] += 1
    starts, total = np.empty(bins + 1, np.int64), 0
    for bin in range(bins):
        starts[bin] = total
        for chunk in range(CHUNKS):
            number, counts[chunk, bin] = counts[chunk, bin], total
            total += number
    starts[bins] = total
    order = np.empty(count, np.int32)
    for chunk in prange(CHUNKS):
        for i in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            order[counts[chunk, bin_of[i]]] = i
            counts[chunk, bin_of[i]] += 1
    return order, starts


@kernel
def fair_pieces(starts, first, pieces, clearing):
    """Boundaries [pieces + 1] that share out the bins first, first + 2, ...: a bin costs its points, and `clearing`."""
    bins = len(starts) - 2
    total = 0.0
    for bin in range(first, bins, 2):
        total += starts[bin + 1] - starts[bin] + clearing
    bounds = np.full(pieces + 1, bins, np.int64)
    bounds[0], done, piece = first, 0.0, 1
    for bin in range(first, bins, 2):
        while piece < pieces and done >= total * piece / pieces:
            bounds[piece] = bin
            piece += 1
        done += starts[bin + 1] - starts[bin] + clearing
    return bounds


@parallel_kernel
def add_total_variation(grid, grad, size, channels, weight, dense):
    """Add weight * sum over the neighbours of clamp(own - neighbour, -1, 1) to grad, or only where it is not 0."""
    dy, dx = channels * size[2], channels * size[2] * size[1]
    for row in prange(size[0] * size[1]):
        x, y = row // size[1], row % size[1]
        first = row * dy
        if not (dense or _any(grad[first : first + dy])):
            continue
        pull = np.zeros(dy, f32)
        own = grid[first : first + dy]
        if x > 0:
            _pull(pull, own, grid[first - dx : first - dx + dy])
        if x < size[0] - 1:
            _pull(pull, own, grid[first + dx : first + dx + dy])
        if y > 0:
            _pull(pull, own, grid[first - dy : first])
        if y < size[1] - 1:
            _pull(pull, own, grid[first + dy : first + 2 * dy])
        _pull(pull[channels:], own[channels:], own[: dy - channels])
        _pull(pull[: dy - channels], own[: dy - channels], own[channels:])
        _add_where(grad[first : first + dy], pull, weight, dense)


@kernel
def _any(values):
    found = False
    for k in range(len(values)):
        found |= values[k] != 0
    return found


@kernel
def _pull(total, own, other):
    for k in range(len(total)):
        total[k] += min(max(own[k] - other[k], f32(-1)), f32(1))


@kernel
def _add_where(total, values, weight, everywhere):
    for k in range(len(total)):
        if everywhere or total[k] != 0:
            total[k] += weight * values[k]


def _three(values: Tensor) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values.tolist())


class _Interpolation(Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
        numba_threads()
        size, channels = tuple(grid.shape[:3]), grid.shape[3]
        spans = (high.double() - low.double()).tolist()
        scale = tuple(np.float32((n - 1) / span) for n, span in zip(size, spans, strict=True))
        place = size, points.detach().contiguous().view(-1).numpy(), _three(low), scale
        numbers = grid.detach().view(-1).numpy()
        values = torch.empty(len(points), channels)
        gather_kernel(channels)(numbers, *place, values.view(-1).numpy())
        ctx.save_for_backward(grid, points)
        ctx.place = place
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_values: Tensor):
        grid, points = ctx.saved_tensors  # raises if one was changed since
        threads, channels = numba_threads(), grid.shape[3]
        size, numbers, low, scale = ctx.place
        v_numbers = v_values.contiguous().view(-1).numpy()
        v_grid = v_points = None
        if ctx.needs_input_grad[0]:
            v_grid = torch.empty_like(grid)
            order, starts = sort_by_cell(numbers, low, scale, size)
            # What clearing a plane costs, in points: about 0.2 ns a number, and 40 ns + 5 ns a channel for a point.
            clearing = 2 * 0.2 * size[1] * size[2] * channels / (40 + 5 * channels)
            for first in (0, 1):
                bounds = fair_pieces(starts, first, threads, clearing * (1 - first))
                total = v_grid.view(-1).numpy()
                scatter_kernel(channels)(total, size, numbers, low, scale, v_numbers, order, starts, bounds)
        if ctx.needs_input_grad[1]:
            v_points = torch.empty(points.shape)
            flat = grid.detach().view(-1).numpy()
            slope_kernel(channels)(flat, size, numbers, low, scale, v_numbers, v_points.view(-1).numpy())
        return v_grid, v_points, None, None


def interpolate_cpu(grid: Tensor, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Trilinear interpolation; see `nfc_splat.rendering.grids.interpolate_grid`."""
    return _Interpolation.apply(grid.contiguous(), points, low, high)


def add_total_variation_grad_cpu(grid: Tensor, grad: Tensor, weight: float, dense: bool) -> None:
    """Total-variation gradient, added in place; see `nfc_splat.rendering.grids.add_total_variation_grad`."""
    numba_threads()
    flat = grid.detach().contiguous().view(-1).numpy()
    add_total_variation(
        flat, grad.view(-1).numpy(), tuple(grid.shape[:3]), grid.shape[3], np.float32(weight / 6), dense
    )
