"""Marching through an occupancy grid in numba: parallel over rays, the same samples as the reference to the bit.

The first pass marks each candidate that stays with one bit, the second writes the samples out. Without a table and a
contraction, a candidate in an empty block of `BLOCK`^3 entries is followed by the first one that may lie outside it.

Multiplications and additions are not fused here, because the reference in torch does not fuse them.

Symbols: R rays, M samples of them together, X, Y, Z entries, n the norm of a position, b the width of the shell. A
candidate's place is its position relative to the box's low corner, in entries.
"""

from functools import partial

import numpy as np
import torch
from numba import prange
from torch import Tensor

from nfc_splat.rendering.kernels.numba_tools import f32, kernel, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads
from nfc_splat.rendering.occupancy import check_size

BLOCK = 8
# Half the width of a block's border in which nothing is skipped, in entries: more than the rounding of places can be.
MARGIN = f32(1e-3)
ROUNDING = f32(16 * np.finfo(np.float32).eps)
ANY_TABLE, ANY_OCCUPANCY = np.zeros(0, f32), np.zeros((0, 0, 0), np.bool_)

exact_kernel = partial(kernel, fastmath=False)
exact_parallel_kernel = partial(parallel_kernel, fastmath=False)


@exact_parallel_kernel
def _occupied_blocks(occupancy, blocks):
    """Fill blocks [X / BLOCK, Y / BLOCK, Z / BLOCK], rounded up: whether any entry of each is occupied."""
    for bx in prange(blocks.shape[0]):
        blocks[bx] = False
        for x in range(bx * BLOCK, min(bx * BLOCK + BLOCK, occupancy.shape[0])):
            for y in range(occupancy.shape[1]):
                for z in range(occupancy.shape[2]):
                    if occupancy[x, y, z]:
                        blocks[bx, y // BLOCK, z // BLOCK] = True


@exact_kernel
def _entry(place, last, nearest):
    """The entry of a place along one axis, from 0 to `last`."""
    entry = np.floor(place)
    if nearest and place - entry >= f32(0.5):
        entry += f32(1)
    return min(max(np.int64(entry), 0), last)


@exact_kernel
def _steps_inside(place, step, entry, margin, shift, most):
    """How many more steps surely stay in the block of `entry` along one axis: 0 where rounding might matter."""
    low = f32(entry // BLOCK * BLOCK) - shift + margin
    high = f32(entry // BLOCK * BLOCK + BLOCK) - shift - margin
    if not low <= place <= high:
        return f32(0)
    if step > f32(0):
        return min((high - place) / step, most)
    if step < f32(0):
        return min((low - place) / step, most)
    return most


@exact_kernel
def _mark_occupied(origin, direction, start, stride, count, table, occupancy, blocks, box, nearest, bits):
    """Set the bits [count] of one ray's candidates that stay, and return how many these are."""
    low, high, scale = box[0], box[1], box[2]
    shift = f32(0.5) if nearest else f32(0)
    last_x, last_y, last_z = occupancy.shape[0] - 1, occupancy.shape[1] - 1, occupancy.shape[2] - 1
    step = direction * stride * scale
    reach = np.abs(origin) + np.abs(low) + np.abs(direction) * (np.abs(start) + np.abs(stride) * f32(count))
    margin = MARGIN + ROUNDING * scale * reach
    kept, k = 0, 0
    while k < count:
        t = start + stride * (table[k] if table.size else f32(k))
        x, y, z = origin[0] + direction[0] * t, origin[1] + direction[1] * t, origin[2] + direction[2] * t
        k += 1
        if not (low[0] <= x <= high[0] and low[1] <= y <= high[1] and low[2] <= z <= high[2]):
            continue
        if occupancy.size:
            x, y, z = (x - low[0]) * scale[0], (y - low[1]) * scale[1], (z - low[2]) * scale[2]
            i, j, l = _entry(x, last_x, nearest), _entry(y, last_y, nearest), _entry(z, last_z, nearest)
            if not occupancy[i, j, l]:
                if table.size == 0 and not blocks[i // BLOCK, j // BLOCK, l // BLOCK]:
                    skipped = _steps_inside(x, step[0], i, margin[0], shift, f32(count))
                    skipped = _steps_inside(y, step[1], j, margin[1], shift, skipped)
                    k += np.int64(_steps_inside(z, step[2], l, margin[2], shift, skipped))
                continue
        kept += 1
        bits[(k - 1) >> 3] |= np.uint8(1 << ((k - 1) & 7))
    return kept


@exact_kernel
def _mark_contracted(
    origin, direction, start, stride, count, table, occupancy, box, nearest, euclidean, shell, min_spacing, bits
):
    """As `_mark_occupied`, for contracted positions, thinned out if `min_spacing` is positive."""
    low, high, scale = box[0], box[1], box[2]
    last_x, last_y, last_z = occupancy.shape[0] - 1, occupancy.shape[1] - 1, occupancy.shape[2] - 1
    whole = f32(1 + shell)
    shell, min_spacing = f32(shell), f32(min_spacing)
    kept = 0
    path, before_x, before_y, before_z = f32(0), f32(0), f32(0), f32(0)
    for k in range(count):
        t = start + stride * (table[k] if table.size else f32(k))
        x, y, z = origin[0] + direction[0] * t, origin[1] + direction[1] * t, origin[2] + direction[2] * t
        measure = x * x + y * y + z * z if euclidean else max(abs(x), abs(y), abs(z))
        inner = measure <= f32(1)
        if not inner:
            inverse = f32(1) / (np.sqrt(measure) if euclidean else measure)
            factor = (whole - shell * inverse) * inverse
            x, y, z = x * factor, y * factor, z * factor
        if min_spacing > f32(0):
            if k > 0:
                dx, dy, dz = x - before_x, y - before_y, z - before_z
                path += np.sqrt(dx * dx + dy * dy + dz * dz)
            before_x, before_y, before_z = x, y, z
            if not (inner or path > min_spacing):
                continue
            path = f32(0)
        if not (low[0] <= x <= high[0] and low[1] <= y <= high[1] and low[2] <= z <= high[2]):
            continue
        if occupancy.size:
            i = _entry((x - low[0]) * scale[0], last_x, nearest)
            j = _entry((y - low[1]) * scale[1], last_y, nearest)
            l = _entry((z - low[2]) * scale[2], last_z, nearest)
            if not occupancy[i, j, l]:
                continue
        kept += 1
        bits[k >> 3] |= np.uint8(1 << (k & 7))
    return kept


@exact_parallel_kernel
def _mark(
    origins, directions, start, stride, counts, table, occupancy, blocks, box,
    nearest, contracted, euclidean, shell, min_spacing, first_byte, bits, kept,
):  # fmt: skip
    """Fill bits, one per candidate, from byte first_byte[r] on for ray r, and kept [R], how many are set."""
    for r in prange(counts.size):
        own = bits[first_byte[r] : first_byte[r + 1]]
        own[:] = 0
        if contracted:
            kept[r] = _mark_contracted(
                origins[r], directions[r], start[r], stride[r], counts[r], table, occupancy, box,
                nearest, euclidean, shell, min_spacing, own,
            )  # fmt: skip
        else:
            kept[r] = _mark_occupied(
                origins[r], directions[r], start[r], stride[r], counts[r], table, occupancy, blocks, box, nearest, own
            )


@exact_parallel_kernel
def _fill(start, stride, table, first_byte, bits, offsets, t, ray, step):
    """Write the samples whose bits are set."""
    for r in prange(start.size):
        row = offsets[r]
        for byte in range(first_byte[r], first_byte[r + 1]):
            marks = np.int64(bits[byte])
            k = (byte - first_byte[r]) * 8
            while marks:
                if marks & 1:
                    t[row] = start[r] + stride[r] * (table[k] if table.size else f32(k))
                    ray[row], step[row] = r, k
                    row += 1
                marks >>= 1
                k += 1


def march(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    start: Tensor,  # [R]
    stride: Tensor,  # [R]
    counts: Tensor,  # [R]
    table: Tensor | None,  # [K]
    occupancy: Tensor | None,  # [X, Y, Z]
    box: Tensor,  # [3, 3] low, high, entries per length
    *,
    nearest: bool,
    contraction: str | None,
    shell: float,
    min_spacing: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `nfc_splat.rendering.occupancy.march_occupancy`."""
    numba_threads()
    given = [tensor.detach().contiguous().numpy() for tensor in (origins, directions, start, stride, counts, box)]
    origin, direction, starts, strides, count, corners = given
    steps = ANY_TABLE if table is None else table.detach().contiguous().numpy()
    grid = ANY_OCCUPANCY if occupancy is None else occupancy.contiguous().numpy()
    first_byte = np.zeros(len(count) + 1, np.int64)
    np.cumsum((count + 7) // 8, out=first_byte[1:])
    bits, kept = np.empty(first_byte[-1], np.uint8), np.empty(len(count), np.int64)
    blocks = np.empty([-(-size // BLOCK) for size in grid.shape], np.bool_)
    if table is None and contraction is None:
        _occupied_blocks(grid, blocks)
    contracted = (contraction is not None, contraction == "l2", float(shell), float(min_spacing))
    _mark(
        origin, direction, starts, strides, count, steps, grid, blocks, corners,
        nearest, *contracted, first_byte, bits, kept,
    )  # fmt: skip
    offsets = torch.zeros(len(count) + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(kept), 0, out=offsets[1:])
    total = int(offsets[-1])
    check_size("samples", total, limit)
    t, ray, step = torch.empty(total), torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    _fill(starts, strides, steps, first_byte, bits, offsets.numpy(), t.numpy(), ray.numpy(), step.numpy())
    return t, ray, step, offsets
