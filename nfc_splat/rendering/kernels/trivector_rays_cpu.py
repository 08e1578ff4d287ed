"""Densities of sparse tri-vectors along rays, compiled by numba: parallel over rays, each from its near end on.

What lies behind an opaque surface costs nothing, and what has been found is not computed again for its gradient.

Symbols: M samples of R rays, of which ray r owns the rows `offsets[r]:offsets[r + 1]`, L scales; see `trivectors_cpu`
for the rest.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import prange
from torch import Tensor

from nfc_splat.rendering.kernels.numba_tools import f32, inlined, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads
from nfc_splat.rendering.kernels.trivectors_cpu import Query, Shape, density_of_scale, flat_lines, make_setup
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.tensor_cells import TensorCells


@inlined
def _row(x, y, z, low, scale, rows):
    """The row of the active cell that a point lies in, or -1; -1 for NaN."""
    u, v, w = (x - low[0]) * scale[0], (y - low[1]) * scale[1], (z - low[2]) * scale[2]
    if not (u >= 0 and v >= 0 and w >= 0 and u < rows.shape[0] and v < rows.shape[1] and w < rows.shape[2]):
        return np.int32(-1)
    return rows[int(u), int(v), int(w)]


@parallel_kernel
def look_along(
    origins, directions, t, offsets, low, scale, cell_rows, neighbors, centers, lines, lengths, counts, clamp,
    shift, interval, stop, rows, values, shares, kept,
):  # fmt: skip
    """Densities along rays, each from its near end until less than `stop` of it goes on.

    Lengths and counts are those of `_tables`. Fills rows [M], -1 for samples that are not seen, values [M] and shares
    [L, M] of those that are, and kept [R].
    """
    for r in prange(offsets.size - 1):
        left, count = f32(1), 0
        for i in range(offsets[r], offsets[r + 1]):
            rows[i] = -1
            if left < stop:
                continue
            x = origins[r, 0] + t[i] * directions[r, 0]
            y = origins[r, 1] + t[i] * directions[r, 1]
            z = origins[r, 2] + t[i] * directions[r, 2]
            row = _row(x, y, z, low, scale, cell_rows)
            if row < 0:
                continue
            total = f32(0)
            for level in range(len(lines)):
                half, scale_of, per_unit = lengths[level, 0], lengths[level, 1], lengths[level, 2]
                shape = Shape(half, scale_of, per_unit, counts[level, 0], counts[level, 1])
                value, share = density_of_scale(
                    x, y, z, neighbors, row, level, centers[level], lines[level], shape, clamp
                )
                total += value
                shares[level, i] = share
            rows[i], values[i] = row, total
            left *= np.exp(-interval * (np.log1p(np.exp(-abs(total + shift))) + max(total + shift, f32(0))))
            count += 1
        kept[r] = count


@parallel_kernel
def fill_seen(
    origins, directions, t, widths, steps, offsets, rows, values, shares,
    new_offsets, new_t, new_widths, new_steps, new_ray, new_positions, new_rows, new_values, new_shares,
):  # fmt: skip
    """Write the samples that are seen, where they are and what was found there."""
    for r in prange(offsets.size - 1):
        at = new_offsets[r]
        for i in range(offsets[r], offsets[r + 1]):
            if rows[i] >= 0:
                new_t[at], new_widths[at], new_steps[at], new_ray[at] = t[i], widths[i], steps[i], r
                new_rows[at], new_values[at] = rows[i], values[i]
                for level in range(len(shares)):
                    new_shares[level, at] = shares[level, i]
                for axis in range(3):
                    new_positions[at, axis] = origins[r, axis] + t[i] * directions[r, axis]
                at += 1


@parallel_kernel
def find_rows(points, low, scale, cell_rows, rows):
    """Fill rows [M] with the rows of the active cells that points lie in, -1 outside of them."""
    for m in prange(len(points)):
        rows[m] = _row(points[m, 0], points[m, 1], points[m, 2], low, scale, cell_rows)


def densities_cpu(
    cells: TensorCells,
    lines: Sequence[Tensor],
    samples: Samples,
    clamp: bool,
    shift: float,
    interval: float,
    stop: float,
) -> tuple[Samples, Tensor, Tensor]:
    """See `nfc_splat.rendering.trivectors.densities_along`."""
    numba_threads()
    setup, rays, count = make_setup(cells, lines, clamp, True), samples.rays, len(samples)
    found, raw = np.empty(count, np.int32), np.empty(count, np.float32)
    shares, kept = np.empty((len(lines), count), np.float32), np.empty(len(samples.offsets) - 1, np.int64)
    steps = samples.ray if samples.steps is None else samples.steps
    arrays = rays.origins, rays.directions, samples.t, samples.widths, steps, samples.offsets
    origins, directions, t, widths, steps, offsets = (array.detach().contiguous().numpy() for array in arrays)
    look_along(
        origins, directions, t, offsets, *_lattice(cells), setup.neighbors, setup.centers, flat_lines(lines),
        *_tables(setup.shapes), clamp, f32(shift), f32(interval), f32(stop), found, raw, shares, kept,
    )  # fmt: skip
    new_offsets, total = torch.zeros(len(offsets), dtype=torch.int64), int(kept.sum())
    np.cumsum(kept, out=new_offsets.numpy()[1:])
    new_t, new_widths, values, positions = (torch.empty(total, *rest) for rest in ((), (), (), (3,)))
    new_steps, new_ray = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    rows, new_shares = torch.empty(total, dtype=torch.int32), torch.empty(len(lines), total)
    outputs = new_offsets, new_t, new_widths, new_steps, new_ray, positions, rows, values, new_shares
    fill_seen(
        origins, directions, t, widths, steps, offsets, found, raw, shares, *(tensor.numpy() for tensor in outputs)
    )
    seen = Samples(rays, new_t, new_widths, new_ray, new_offsets, None if samples.steps is None else new_steps)
    seen.__dict__["positions"] = positions
    return seen, Query.apply(positions, rows, setup, (values, new_shares), *lines), rows


def _tables(shapes: Sequence[Shape]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [L, 3] float32 and counts [L, 2] int64: numba passes no tuple of tuples to threads."""
    lengths = np.array([(shape.half, shape.scale, shape.per_unit) for shape in shapes], np.float32)
    return lengths, np.array([(shape.cells, shape.ranks) for shape in shapes], np.int64)


def _lattice(cells: TensorCells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return cells.low.numpy(), cells.per_length.numpy(), cells.rows.numpy()


def rows_cpu(cells: TensorCells, points: Tensor) -> Tensor:
    """See `nfc_splat.rendering.trivectors.TensorCells.rows_of`."""
    numba_threads()
    rows = torch.empty(len(points), dtype=torch.int32)
    find_rows(points.detach().contiguous().numpy(), *_lattice(cells), rows.numpy())
    return rows
