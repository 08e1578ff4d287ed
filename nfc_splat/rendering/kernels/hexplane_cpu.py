"""HexPlane on the CPU, compiled by numba: forward, and backward to planes, points and time.

All points share a time, so a level's time planes are first reduced to lines [3, R, C] at that time. A point then needs
four nodes of each spatial plane and two of each line, 18 where six planes would need 24.

The gradient is added up without atomics and without sorting: the product is taken channel by channel, so a task takes
one level and some channels of it, for all points in their order. Tasks write to different numbers, and their number
does not depend on the threads: the result has the same bits for any number of threads. What tasks have in common, the
gradient of the points, is written once per task and then added up in order.

Symbols: L levels, R nodes along an axis of space, T along time, C channels, W channels of a task, M points. Planes are
worked on as flat rows of numbers. Factors of the product are numbered 0 .. 5: spatial planes (x, y), (x, z), (y, z),
then lines x, y, z.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.kernels.numba_tools import f32, inlined, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads
from nfc_splat.rendering.kernels.vectors_cpu import dot, load, plus_scaled, scaled, store, times

WIDEST = 16  # channels of a task: more would leave processors idle, fewer repeat the work that channels share
BLOCK = 256  # points that a thread of the forward pass takes at a time


@inlined
def _node(value, low, scale, count):
    """The node before a coordinate, how far beyond it the coordinate lies, and d place / d coordinate: 0 outside."""
    place = (value - low) * scale
    inside = place > f32(0) and place < f32(count - 1)  # False for NaN
    slope = scale if inside else f32(0)
    if not inside:
        place = f32(count - 1) if place >= f32(count - 1) else f32(0)
    node = min(int(place), count - 2)
    return node, place - f32(node), slope


@inlined
def _mix4(plane, at, right, row, u, v, width):
    """Bilinear values [W] of a plane; its next node is `right` and its next row is `row` numbers away."""
    mixed = scaled((f32(1) - u) * (f32(1) - v), load(plane, at, width))
    mixed = plus_scaled(mixed, u * (f32(1) - v), load(plane, at + right, width))
    mixed = plus_scaled(mixed, (f32(1) - u) * v, load(plane, at + row, width))
    return plus_scaled(mixed, u * v, load(plane, at + row + right, width))


@inlined
def _mix2(line, at, right, u, width):
    """Linear values [W] of a line."""
    return plus_scaled(scaled(f32(1) - u, load(line, at, width)), u, load(line, at + right, width))


@inlined
def _add(grad, at, weight, g, width):
    store(grad, at, plus_scaled(load(grad, at, width), weight, g))


@inlined
def _spread4(plane, grad, at, right, row, u, v, g, width):
    """Add the gradient [W] of a bilinear value to its four nodes; returns its slopes along column and row."""
    p, q = f32(1) - u, f32(1) - v
    _add(grad, at, p * q, g, width)
    _add(grad, at + right, u * q, g, width)
    _add(grad, at + row, p * v, g, width)
    _add(grad, at + row + right, u * v, g, width)
    a, b = dot(load(plane, at, width), g), dot(load(plane, at + right, width), g)
    c, d = dot(load(plane, at + row, width), g), dot(load(plane, at + row + right, width), g)
    return q * (b - a) + v * (d - c), p * (c - a) + u * (d - b)


@inlined
def _spread2(line, grad, at, right, u, g, width):
    """Add the gradient [W] of a linear value to its two nodes; returns its slope."""
    _add(grad, at, f32(1) - u, g, width)
    _add(grad, at + right, u, g, width)
    return dot(load(line, at + right, width), g) - dot(load(line, at, width), g)


# The kernels below are made once per number of channels, which is a constant in them.


@cache
def forward_kernel(channels: int):
    """The kernel (spatial, lines, nodes, points, low, scale, values, columns, column): writes one level's features
    from `column` on into each row of values [M * columns]."""

    @parallel_kernel
    def forward(spatial, lines, nodes, points, low, scale, values, columns, column):
        count, row = points.shape[0], nodes * channels
        plane = nodes * row
        for block in prange(-(-count // BLOCK)):
            for m in range(block * BLOCK, min(block * BLOCK + BLOCK, count)):
                i, u, _ = _node(points[m, 0], low[0], scale[0], nodes)
                j, v, _ = _node(points[m, 1], low[1], scale[1], nodes)
                k, w, _ = _node(points[m, 2], low[2], scale[2], nodes)
                x, y, z = i * channels, j * channels, k * channels
                product = times(
                    times(
                        _mix4(spatial, j * row + x, channels, row, u, v, channels),
                        _mix4(spatial, plane + k * row + x, channels, row, u, w, channels),
                    ),
                    _mix4(spatial, 2 * plane + k * row + y, channels, row, v, w, channels),
                )
                product = times(product, _mix2(lines, x, channels, u, channels))
                product = times(product, _mix2(lines, row + y, channels, v, channels))
                product = times(product, _mix2(lines, 2 * row + z, channels, w, channels))
                store(values, m * columns + column, product)

    return forward


@cache
def backward_kernel(channels: int, width: int):
    """The kernel (spatial, lines, nodes, points, low, scale, v_values, v_spatial, v_lines, v_points): adds to the
    gradients of the planes and lines of every level, and fills v_points [tasks, M, 3]."""

    @parallel_kernel
    def backward(spatial, lines, nodes, points, low, scale, v_values, v_spatial, v_lines, v_points):
        parts = channels // width
        columns = channels * len(nodes)
        for task in prange(v_points.shape[0]):
            level, first = task // parts, task % parts * width
            row = nodes[level] * channels
            plane = nodes[level] * row
            factor, grad, line, v_line = spatial[level], v_spatial[level], lines[level], v_lines[level]
            for m in range(points.shape[0]):
                i, u, sx = _node(points[m, 0], low[0], scale[level, 0], nodes[level])
                j, v, sy = _node(points[m, 1], low[1], scale[level, 1], nodes[level])
                k, w, sz = _node(points[m, 2], low[2], scale[level, 2], nodes[level])
                x, y, z = first + i * channels, first + j * channels, first + k * channels
                xy_at, xz_at, yz_at = j * row + x, plane + k * row + x, 2 * plane + k * row + y
                yt_at, zt_at = row + y, 2 * row + z
                xy = _mix4(factor, xy_at, channels, row, u, v, width)
                xz = _mix4(factor, xz_at, channels, row, u, w, width)
                yz = _mix4(factor, yz_at, channels, row, v, w, width)
                xt, yt = _mix2(line, x, channels, u, width), _mix2(line, yt_at, channels, v, width)
                zt = _mix2(line, zt_at, channels, w, width)
                # Each factor's gradient is that of the product times the other five factors.
                g = load(v_values, m * columns + level * channels + first, width)
                space, moment = times(xy, xz), times(xt, yt)
                late, early = times(times(moment, zt), g), times(times(space, yz), g)
                xa, ya = _spread4(factor, grad, xy_at, channels, row, u, v, times(times(xz, yz), late), width)
                xb, za = _spread4(factor, grad, xz_at, channels, row, u, w, times(times(xy, yz), late), width)
                yb, zb = _spread4(factor, grad, yz_at, channels, row, v, w, times(space, late), width)
                xc = _spread2(line, v_line, x, channels, u, times(times(yt, zt), early), width)
                yc = _spread2(line, v_line, yt_at, channels, v, times(times(xt, zt), early), width)
                zc = _spread2(line, v_line, zt_at, channels, w, times(moment, early), width)
                v_points[task, m, 0] = sx * (xa + xb + xc)
                v_points[task, m, 1] = sy * (ya + yb + yc)
                v_points[task, m, 2] = sz * (za + zb + zc)

    return backward


def _lines(temporal: Tensor, time: Tensor, low: float, scale: float) -> tuple[Tensor, int, float, float]:
    """Planes [3, T, R, C] at a time: lines [3, R, C], the row before it, the share of the next one, and d place / d
    time."""
    row, share, slope = _node.py_func(np.float32(time.item()), f32(low), f32(scale), temporal.shape[1])
    return torch.lerp(temporal[:, row], temporal[:, row + 1], float(share)), row, float(share), float(slope)


class _HexPlane(Function):
    """Planes come as spatial, temporal, spatial, temporal, ...: autograd sees only tensors that are arguments."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, time: Tensor, low: Tensor, high: Tensor, *planes: Tensor) -> Tensor:
        numba_threads()
        spatial, temporal = planes[::2], planes[1::2]
        channels, nodes = spatial[0].shape[-1], np.array([plane.shape[1] for plane in spatial])
        spans = (high.double() - low.double()).numpy()
        scale = ((nodes[:, None] - 1) / spans[:3]).astype(np.float32)  # [L, 3]
        found = [_lines(plane, time, float(low[3]), (plane.shape[1] - 1) / spans[3]) for plane in temporal]
        lines = tuple(line.view(-1).numpy() for line, *_ in found)
        place = points.contiguous().numpy(), low.numpy(), scale
        values = torch.empty(len(points), len(nodes) * channels)
        for level, count in enumerate(nodes):
            numbers = spatial[level].view(-1).numpy()
            column = level * channels
            forward_kernel(channels)(
                numbers, lines[level], count, *place[:2], scale[level], values.view(-1).numpy(), values.shape[1], column
            )
        ctx.save_for_backward(points, *planes)
        ctx.place, ctx.lines, ctx.nodes = place, lines, nodes
        ctx.times = [rest for _, *rest in found]
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_values: Tensor):
        numba_threads()
        points, *planes = ctx.saved_tensors  # raises if one was changed since
        spatial, temporal = planes[::2], planes[1::2]
        channels = spatial[0].shape[-1]
        width = WIDEST if channels % WIDEST == 0 else channels
        v_spatial = [torch.zeros_like(plane) for plane in spatial]
        v_lines = [torch.zeros(3, count, channels) for count in ctx.nodes]
        v_points = torch.empty(len(spatial) * channels // width, *points.shape)
        flat = lambda tensors: tuple(tensor.view(-1).numpy() for tensor in tensors)  # noqa: E731
        numbers, low, scale = ctx.place
        backward_kernel(channels, width)(
            flat(spatial), ctx.lines, ctx.nodes, numbers, low, scale, v_values.contiguous().view(-1).numpy(),
            flat(v_spatial), flat(v_lines), v_points.numpy(),
        )  # fmt: skip
        total = v_points[0]
        for part in v_points[1:]:
            total += part
        v_time = _time_gradient(v_lines, temporal, ctx.times) if ctx.needs_input_grad[1] else None
        v_temporal = [_rows(line, plane, *at) for line, plane, at in zip(v_lines, temporal, ctx.times, strict=True)]
        v_planes = [plane for level in zip(v_spatial, v_temporal, strict=True) for plane in level]
        return total, v_time, None, None, *v_planes


def _rows(v_line: Tensor, plane: Tensor, row: int, share: float, slope: float) -> Tensor:
    """The gradient of a level's time planes from that of its lines."""
    v_plane = torch.zeros_like(plane)
    torch.mul(v_line, 1 - share, out=v_plane[:, row])
    torch.mul(v_line, share, out=v_plane[:, row + 1])
    return v_plane


def _time_gradient(v_lines: list[Tensor], temporal: list[Tensor], times: list[tuple[int, float, float]]) -> Tensor:
    total = 0.0
    for v_line, plane, (row, _, slope) in zip(v_lines, temporal, times, strict=True):
        # numpy's sum: torch's depends on the number of threads
        total += slope * float(np.sum((v_line * (plane[:, row + 1] - plane[:, row])).numpy(), dtype=np.float64))
    return torch.tensor(total)


def hexplane_cpu(levels: Any, points: Tensor, time: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """See `nfc_splat.rendering.hexplane.interpolate_hexplane`."""
    planes = [plane.contiguous() for level in levels for plane in level]
    return _HexPlane.apply(points, time, low, high, *planes)
