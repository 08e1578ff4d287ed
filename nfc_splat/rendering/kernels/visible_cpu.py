"""Which samples a grid of raw densities shows, in numba: parallel over rays, each ray from its near end on.

The threshold on the opacity is one on the raw density, so only samples that pass cost an exponential, and what lies
behind an opaque surface costs nothing at all.

Symbols: R rays, M samples, X, Y, Z nodes; ray r owns the rows `offsets[r]:offsets[r + 1]`.
"""

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor

from nfc_splat.rendering.kernels.grid_cpu import AHEAD, amid, corner_of, prefetch, touches
from nfc_splat.rendering.kernels.numba_tools import f32, inlined, kernel, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads
from nfc_splat.rendering.samples import Samples

PLAIN, EUCLIDEAN, LARGEST = 0, 1, 2  # contraction: none, and by which norm
CONTRACTIONS = {None: PLAIN, "l2": EUCLIDEAN, "inf": LARGEST}


@inlined
def _place(origins, directions, r, t, low, scale, contraction, shell):
    """A sample's position in units of nodes."""
    x = origins[r, 0] + t * directions[r, 0]
    y = origins[r, 1] + t * directions[r, 1]
    z = origins[r, 2] + t * directions[r, 2]
    if contraction != PLAIN:
        n = max(abs(x), abs(y), abs(z))
        if contraction == EUCLIDEAN:
            n = np.sqrt(x * x + y * y + z * z)
        if n > f32(1):
            factor = (f32(1) + shell - shell / n) / n
            x, y, z = x * factor, y * factor, z * factor
    return (x - low[0]) * scale[0], (y - low[1]) * scale[1], (z - low[2]) * scale[2]


@kernel
def _ask(grid, size, x, y, z):
    """Ask for the memory of the eight nodes around a place."""
    if amid(x, y, z, size):
        first = (int(x) * size[1] + int(y)) * size[2] + int(z)
        prefetch(grid, first)
        prefetch(grid, first + size[2])
        prefetch(grid, first + size[1] * size[2])
        prefetch(grid, first + size[1] * size[2] + size[2])


@kernel
def _value(grid, size, x, y, z):
    """The grid's value at a place; nodes outside count as 0."""
    if amid(x, y, z, size):
        ix, iy, iz = int(x), int(y), int(z)
        fx, fy, fz = x - f32(ix), y - f32(iy), z - f32(iz)
        gx, gy, gz = f32(1) - fx, f32(1) - fy, f32(1) - fz
        a = (ix * size[1] + iy) * size[2] + iz
        b, c = a + size[2], a + size[1] * size[2]
        d = c + size[2]
        near = gx * (gy * grid[a] + fy * grid[b]) + fx * (gy * grid[c] + fy * grid[d])
        far = gx * (gy * grid[a + 1] + fy * grid[b + 1]) + fx * (gy * grid[c + 1] + fy * grid[d + 1])
        return gz * near + fz * far
    value = f32(0)
    if touches(x, y, z, size):
        for corner in range(8):
            node, weight = corner_of(x, y, z, corner, size)
            if node >= 0:
                value += weight * grid[node]
    return value


@parallel_kernel
def _mark(
    grid, size, origins, directions, t, offsets, low, scale, contraction, shell, shift, interval, least, stop,
    shown, kept,
):  # fmt: skip
    """Fill shown [M] and kept [R], how many of each ray are shown. `least` is the raw density that an opacity needs."""
    for r in prange(offsets.size - 1):
        left, count = f32(1), 0
        first, end = offsets[r], offsets[r + 1]
        for i in range(first, end):
            shown[i] = False
        for i in range(first, min(first + AHEAD, end)):
            x, y, z = _place(origins, directions, r, t[i], low, scale, contraction, shell)
            _ask(grid, size, x, y, z)
        for i in range(first, end):
            if i + AHEAD < end:
                x, y, z = _place(origins, directions, r, t[i + AHEAD], low, scale, contraction, shell)
                _ask(grid, size, x, y, z)
            x, y, z = _place(origins, directions, r, t[i], low, scale, contraction, shell)
            raw = _value(grid, size, x, y, z)
            if raw > least:
                shown[i] = True
                count += 1
                left *= (f32(1) + np.exp(raw + shift)) ** -interval
                if left < stop:
                    break
        kept[r] = count


@parallel_kernel
def _fill(
    t, widths, steps, offsets, shown, origins, directions,
    new_offsets, new_t, new_widths, new_steps, new_ray, new_positions,
):  # fmt: skip
    """Write the samples that are shown, and where they are."""
    for r in prange(offsets.size - 1):
        row = new_offsets[r]
        for i in range(offsets[r], offsets[r + 1]):
            if shown[i]:
                new_t[row], new_widths[row], new_steps[row], new_ray[row] = t[i], widths[i], steps[i], r
                for axis in range(3):
                    new_positions[row, axis] = origins[r, axis] + t[i] * directions[r, axis]
                row += 1


def visible(
    grid: Tensor,  # [X, Y, Z, 1]
    samples: Samples,
    low: Tensor,  # [3]
    high: Tensor,  # [3]
    shift: float,
    interval: float,
    threshold: float,
    stop: float,
    center: Tensor,  # [3]
    radius: float,
    contraction: str | None,
    shell: float,
) -> Samples:
    """See `nfc_splat.rendering.density_grid.visible_samples`."""
    numba_threads()
    size, rays = tuple(grid.shape[:3]), samples.rays
    spans = (high.double() - low.double()).tolist()
    scale = tuple(f32((n - 1) / span) for n, span in zip(size, spans, strict=True))
    steps = samples.ray if samples.steps is None else samples.steps
    t, widths, steps, offsets = _arrays(samples.t, samples.widths, steps, samples.offsets)
    shown, kept = np.empty(len(t), np.bool_), np.empty(len(offsets) - 1, np.int64)
    corner = tuple(f32(value) for value in low.tolist())
    numbers = (f32(value) for value in (shell, shift, interval, least_density(shift, interval, threshold), stop))
    flat, *places = _arrays(grid.reshape(-1), (rays.origins - center) / radius, rays.directions / radius)
    _mark(flat, size, *places, t, offsets, corner, scale, CONTRACTIONS[contraction], *numbers, shown, kept)
    total = int(kept.sum())
    new_offsets = torch.zeros(len(offsets), dtype=torch.int64)
    np.cumsum(kept, out=new_offsets.numpy()[1:])
    new_t, new_widths, positions = torch.empty(total), torch.empty(total), torch.empty(total, 3)
    new_steps, new_ray = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    outputs = _arrays(new_offsets, new_t, new_widths, new_steps, new_ray, positions)
    _fill(t, widths, steps, offsets, shown, *_arrays(rays.origins, rays.directions), *outputs)
    new_steps = None if samples.steps is None else new_steps
    result = Samples(rays, new_t, new_widths, new_ray, new_offsets, new_steps)
    result.__dict__["positions"] = positions
    return result


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def least_density(shift: float, interval: float, threshold: float) -> float:
    """The raw density whose opacity over `interval` is `threshold`: -inf for 0."""
    if threshold <= 0:
        return -math.inf
    return math.log(math.expm1(-math.log1p(-threshold) / interval)) - shift
