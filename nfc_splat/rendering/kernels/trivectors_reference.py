"""Sparse tri-vectors in plain torch: the oracle of the tests, any float dtype and device, twice differentiable; and the
same in parts with little memory, which is what runs on a GPU.

Symbols: M samples, R rays, L scales, K neighbours, N tensors of a scale, D cells of its lines, C ranks of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nfc_splat.rendering.density_grid import opacity
from nfc_splat.rendering.packed import render_weights
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.tensor_cells import TensorCells

SAMPLES_AT_ONCE = 2**15
NEARNESS = 1e-6  # units, added to a distance before it is inverted


def query_reference(
    cells: TensorCells, lines: Sequence[Tensor], points: Tensor, rows: Tensor, summed: bool, clamp: bool
) -> Tensor:
    """See `nfc_splat.rendering.trivectors.query_trivectors`."""
    inside = rows >= 0
    points = torch.where(inside[:, None], points, torch.zeros_like(points))  # NaN would come through
    near = cells.neighbors[rows.clamp_min(0).long()].long()  # [M, L, K]
    values = []
    for level, line in enumerate(lines):
        tensor = near[:, level]
        valid = (tensor >= 0) & inside[:, None]
        tensor = tensor.clamp_min(0)
        offset = points[:, None] - cells.centers[level][tensor]  # [M, K, 3]
        weights = valid / (torch.linalg.vector_norm(offset, dim=-1) / cells.unit + NEARNESS)
        products = _products(line, tensor, offset, cells.halves[level], clamp)
        total = (weights[..., None] * products).sum(1)
        values.append(total / weights.sum(1).clamp_min(1)[:, None])
    return sum(value.sum(1) for value in values) if summed else torch.cat(values, 1)


def _products(line: Tensor, tensor: Tensor, offset: Tensor, half: float, clamp: bool) -> Tensor:
    """[M, K, C] of lines [N, 3, D + 1, C], tensors [M, K], and where the points are relative to their centres."""
    count = line.shape[2] - 1
    place = (offset + half) * (count / (2 * half))
    if clamp:
        place = place.clamp(0, count)
    node = place.detach().nan_to_num(0).trunc().clamp(0, count - 1).long()
    share = (place - node)[..., None]
    product = 1.0
    for axis in range(3):
        at, part = node[..., axis], share[..., axis, :]
        product = product * (line[tensor, axis, at] * (1 - part) + line[tensor, axis, at + 1] * part)
    return product


class _InParts(Function):
    """`query_reference` of `SAMPLES_AT_ONCE` samples at a time; the backward pass computes anew what it needs."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, rows: Tensor, cells: TensorCells, summed: bool, clamp: bool, *lines: Tensor
    ) -> Tensor:
        ctx.save_for_backward(points, rows, *lines)
        ctx.cells, ctx.options = cells, (summed, clamp)
        parts = zip(points.split(SAMPLES_AT_ONCE), rows.split(SAMPLES_AT_ONCE), strict=True)
        return torch.cat([query_reference(cells, lines, *part, summed, clamp) for part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_values: Tensor):
        points, rows, *lines = ctx.saved_tensors
        lines = [line.detach().requires_grad_() for line in lines]
        v_lines, v_points = [torch.zeros_like(line) for line in lines], torch.zeros_like(points)
        for first in range(0, len(points), SAMPLES_AT_ONCE):
            part = slice(first, first + SAMPLES_AT_ONCE)
            place = points[part].detach().requires_grad_()
            with torch.enable_grad():
                values = query_reference(ctx.cells, lines, place, rows[part], *ctx.options)
            v_points[part], *added = torch.autograd.grad(values, (place, *lines), v_values[part])
            for total, one in zip(v_lines, added, strict=True):
                total += one
        return v_points, None, None, None, None, *v_lines


def query_in_parts(
    cells: TensorCells, lines: Sequence[Tensor], points: Tensor, rows: Tensor, summed: bool, clamp: bool
) -> Tensor:
    """See `nfc_splat.rendering.trivectors.query_trivectors`. Its backward pass adds up with atomics on a GPU, so that
    the last bits of a gradient vary from run to run."""
    return _InParts.apply(points, rows, cells, summed, clamp, *lines)


def densities_reference(
    cells: TensorCells,
    lines: Sequence[Tensor],
    samples: Samples,
    clamp: bool,
    shift: float,
    interval: float,
    stop: float,
) -> tuple[Samples, Tensor, Tensor]:
    """See `nfc_splat.rendering.trivectors.densities_along`."""
    query = query_in_parts if samples.t.device.type == "cuda" else query_reference
    with torch.no_grad():
        rows = cells.rows_of(samples.positions)
        values = query(cells, lines, samples.positions, rows, True, clamp)
        alphas = torch.where(rows >= 0, opacity(values, shift, interval), torch.zeros_like(values))
        # What T was in front of a sample: `render_weights` gives 0 to what lies behind the end of a ray.
        weights, _ = render_weights(alphas, samples.offsets, stop=stop)
    seen, kept = samples.keep(weights > 0)
    rows = rows[kept]
    return seen, query(cells, lines, seen.positions, rows, True, clamp), rows
