"""Marching through an occupancy grid in numba: parallel over rays, the same samples as the reference to the bit.

The first pass marks each candidate that stays with one bit, the second writes the samples out. Candidates are looked at
`LANES` together, in loops that vectorise. Without a table and a contraction, the steps that surely stay in empty blocks
of `BLOCK`^3 entries are skipped. Multiplications and additions are not fused, because torch does not fuse them.

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

LANES = 32  # loops over 16 are unrolled before they are vectorised, and then no longer are
# Where a buffer's rows begin: t; coordinates, behind those of the candidate before; 1 / n; 1 where n <= 1; the distance
# from the candidate before.
T, PX, PY, PZ, INVERSE, INNER, PATH, BUFFER = (row * (LANES + 1) for row in range(8))
LANE_NUMBERS = np.arange(LANES, dtype=f32)
BLOCK = 8
FURTHEST = 4  # blocks looked around for an occupied one
# How near to a block's side nothing is skipped, in entries: more than the rounding of places can be.
MARGIN = f32(1e-3)
ROUNDING = f32(16 * np.finfo(np.float32).eps)
STILL = f32(1e-30)  # a ray that moves less per step along an axis does not move
RAYS = 32  # per piece of work
NO_TABLE, FULL = np.zeros(0, f32), np.ones((1, 1, 1), np.bool_)

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
def _positions(buffer, table, k, count, start, stride, origin, direction):
    """t and the positions of the candidates from k on; behind a ray's last one they mean nothing."""
    if table.size:
        for j in range(min(count - k, LANES)):
            buffer[T + j] = table[k + j]
    else:
        first = f32(k)
        for j in range(LANES):
            buffer[T + j] = first + LANE_NUMBERS[j]
    ox, oy, oz, dx, dy, dz = origin[0], origin[1], origin[2], direction[0], direction[1], direction[2]
    for j in range(LANES):
        t = start + stride * buffer[T + j]
        buffer[PX + 1 + j] = ox + dx * t
        buffer[PY + 1 + j] = oy + dy * t
        buffer[PZ + 1 + j] = oz + dz * t


@exact_kernel
def _contract(buffer, euclidean, shell):
    """Contract the positions."""
    whole, width = f32(1 + shell), f32(shell)
    if euclidean:
        for j in range(LANES):
            x, y, z = buffer[PX + 1 + j], buffer[PY + 1 + j], buffer[PZ + 1 + j]
            square = x * x + y * y + z * z
            buffer[INNER + j] = f32(1) if square <= f32(1) else f32(0)
            buffer[INVERSE + j] = f32(1) / np.sqrt(square)
    else:
        for j in range(LANES):
            x, y, z = abs(buffer[PX + 1 + j]), abs(buffer[PY + 1 + j]), abs(buffer[PZ + 1 + j])
            largest = x if x > y else y
            largest = largest if largest > z else z
            buffer[INNER + j] = f32(1) if largest <= f32(1) else f32(0)
            buffer[INVERSE + j] = f32(1) / largest
    for j in range(LANES):
        inverse = buffer[INVERSE + j]
        factor = f32(1) if buffer[INNER + j] > f32(0) else (whole - width * inverse) * inverse
        buffer[PX + 1 + j] *= factor
        buffer[PY + 1 + j] *= factor
        buffer[PZ + 1 + j] *= factor


@exact_kernel
def _path_lengths(buffer, k):
    """The distance of each candidate from the one before it; 0 for a ray's first."""
    if k == 0:
        buffer[PX], buffer[PY], buffer[PZ] = buffer[PX + 1], buffer[PY + 1], buffer[PZ + 1]
    for j in range(LANES):
        x, y = buffer[PX + 1 + j] - buffer[PX + j], buffer[PY + 1 + j] - buffer[PY + j]
        z = buffer[PZ + 1 + j] - buffer[PZ + j]
        buffer[PATH + j] = np.sqrt(x * x + y * y + z * z)
    buffer[PX], buffer[PY], buffer[PZ] = buffer[PX + LANES], buffer[PY + LANES], buffer[PZ + LANES]


@exact_kernel
def _entry(place, last, half):
    """The entry of a place along one axis, from 0 to `last`: rounded up from `half` on."""
    place = place if place > f32(0) else f32(0)
    place = place if place < last else last
    whole = np.int32(place)
    return np.int32(whole + 1) if place - f32(whole) >= half else whole


@exact_kernel
def _find_entries(buffer, entries, box, shape, half):
    """The flat number of each candidate's entry; -1 outside the box."""
    low_x, low_y, low_z, high_x, high_y, high_z = box[0, 0], box[0, 1], box[0, 2], box[1, 0], box[1, 1], box[1, 2]
    scale_x, scale_y, scale_z = box[2, 0], box[2, 1], box[2, 2]
    last_x, last_y, last_z = f32(shape[0] - 1), f32(shape[1] - 1), f32(shape[2] - 1)
    rows, columns = np.int32(shape[1]), np.int32(shape[2])
    for j in range(LANES):
        x, y, z = buffer[PX + 1 + j], buffer[PY + 1 + j], buffer[PZ + 1 + j]
        inside = (x >= low_x) & (x <= high_x) & (y >= low_y) & (y <= high_y) & (z >= low_z) & (z <= high_z)
        row = np.int32(_entry((x - low_x) * scale_x, last_x, half) * rows) + _entry((y - low_y) * scale_y, last_y, half)
        entry = np.int32(np.int32(row) * columns) + _entry((z - low_z) * scale_z, last_z, half)
        entries[j] = np.int32(entry) if inside else np.int32(-1)


@exact_kernel
def _steps_inside(place, inverse_step, first, last, margin, most):
    """How many more steps surely stay between `first` and `last` along one axis: 0 where rounding might matter."""
    low, high = first + margin, last - margin
    if not low <= place <= high:
        return f32(0)
    return min(((high if inverse_step > f32(0) else low) - place) * inverse_step, most)


@exact_kernel
def _skippable(buffer, lane, box, half, clearance, inverse_steps, margins, most):
    """How many of the next `most` candidates surely lie in empty blocks like the one in `lane`, which is in the box."""
    shift = half if half < f32(1) else f32(0)
    x = (buffer[PX + 1 + lane] - box[0, 0]) * box[2, 0] + shift
    y = (buffer[PY + 1 + lane] - box[0, 1]) * box[2, 1] + shift
    z = (buffer[PZ + 1 + lane] - box[0, 2]) * box[2, 2] + shift
    i = min(np.int64(x) // BLOCK, clearance.shape[0] - 1)
    j = min(np.int64(y) // BLOCK, clearance.shape[1] - 1)
    m = min(np.int64(z) // BLOCK, clearance.shape[2] - 1)
    around = np.int64(clearance[i, j, m])
    if around == 0:
        return 0
    back, ahead = (1 - around) * BLOCK, around * BLOCK
    i, j, m = i * BLOCK, j * BLOCK, m * BLOCK
    left = _steps_inside(x, inverse_steps[0], f32(i + back), f32(i + ahead), margins[0], f32(most))
    left = _steps_inside(y, inverse_steps[1], f32(j + back), f32(j + ahead), margins[1], left)
    return np.int64(_steps_inside(z, inverse_steps[2], f32(m + back), f32(m + ahead), margins[2], left))


@exact_kernel
def _occupied_lanes(entries, grid):
    """A bit for each candidate whose entry is occupied."""
    marks = 0
    for j in range(LANES):
        entry = entries[j]
        marks |= (np.int64(grid[max(entry, 0)]) & np.int64(entry >= 0)) << j
    return marks


@exact_kernel
def _set_bits(bits, k, marks):
    """Or `marks`, whose lowest bit is candidate k, into `bits`; returns how many are set."""
    byte, shifted, count = k >> 3, marks << (k & 7), 0
    while shifted:
        bits[byte] |= np.uint8(shifted & 255)
        shifted >>= 8
        byte += 1
    while marks:
        marks &= marks - 1
        count += 1
    return count


@exact_kernel
def _thin_out(buffer, entries, lanes, path, spacing):
    """Take out the outer candidates less than `spacing` of path behind the last that stays; returns the path since."""
    for j in range(lanes):
        path += buffer[PATH + j]
        if buffer[INNER + j] > f32(0) or path > spacing:
            path = f32(0)
        else:
            entries[j] = -1
    return path


@exact_kernel
def _mark_ray(
    origin, direction, start, stride, count, table, grid, shape, clearance, box,
    half, contracted, euclidean, shell, spacing, buffer, entries, inverse_steps, margins, bits,
):  # fmt: skip
    """Set the bits [count] of one ray's candidates that stay, and return how many these are."""
    for axis in range(3):
        step = direction[axis] * stride * box[2, axis]
        inverse_steps[axis] = f32(1) / (step if abs(step) > STILL else STILL)
        reach = abs(direction[axis]) * (abs(start) + abs(stride) * f32(count))
        margins[axis] = MARGIN + ROUNDING * box[2, axis] * (abs(origin[axis]) + abs(box[0, axis]) + reach)
    kept, k, path = 0, 0, f32(0)
    while k < count:
        lanes = min(LANES, count - k)
        _positions(buffer, table, k, count, start, stride, origin, direction)
        if contracted:
            _contract(buffer, euclidean, shell)
        _find_entries(buffer, entries, box, shape, half)
        if spacing > f32(0):
            _path_lengths(buffer, k)
            path = _thin_out(buffer, entries, lanes, path, spacing)
        marks = _occupied_lanes(entries, grid) & ((1 << lanes) - 1)
        if marks:
            kept += _set_bits(bits, k, marks)
        k += lanes
        last = entries[lanes - 1]
        if clearance.size and last >= 0 and marks == 0:
            k += _skippable(buffer, lanes - 1, box, half, clearance, inverse_steps, margins, count - k)
    return kept


@exact_parallel_kernel
def _mark(
    origins, directions, start, stride, counts, table, occupancy, clearance, box,
    nearest, contracted, euclidean, shell, min_spacing, first_byte, bits, kept,
):  # fmt: skip
    """Fill bits, one per candidate, from byte first_byte[r] on for ray r, and kept [R], how many are set."""
    half = f32(0.5) if nearest else f32(2)
    for piece in prange(-(-counts.size // RAYS)):
        buffer, entries = np.zeros(BUFFER, f32), np.zeros(LANES, np.int32)
        inverse_steps, margins = np.zeros(3, f32), np.zeros(3, f32)
        for r in range(piece * RAYS, min(piece * RAYS + RAYS, counts.size)):
            own = bits[first_byte[r] : first_byte[r + 1]]
            own[:] = 0
            kept[r] = _mark_ray(
                origins[r], directions[r], start[r], stride[r], counts[r], table, occupancy.ravel(), occupancy.shape,
                clearance, box, half, contracted, euclidean, shell, f32(min_spacing),
                buffer, entries, inverse_steps, margins, own,
            )  # fmt: skip


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


def _clearance(occupancy: np.ndarray) -> np.ndarray:
    """[X / BLOCK, Y / BLOCK, Z / BLOCK] uint8, rounded up: how many blocks away the nearest one with an occupied entry
    is, diagonals counting one; 0 for itself, at most FURTHEST."""
    near = np.empty([-(-size // BLOCK) for size in occupancy.shape], np.bool_)
    _occupied_blocks(occupancy, near)
    clearance = (~near).astype(np.uint8)
    for _ in range(1, FURTHEST):
        for axis in range(3):
            before, after = np.moveaxis(near, axis, 0), np.moveaxis(near.copy(), axis, 0)
            after[1:] |= before[:-1]
            after[:-1] |= before[1:]
            near = np.moveaxis(after, 0, axis)
        clearance += ~near
    return np.ascontiguousarray(clearance)


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
    steps = NO_TABLE if table is None else table.detach().contiguous().numpy()
    grid = FULL if occupancy is None else occupancy.contiguous().numpy()
    skipping = occupancy is not None and table is None and contraction is None
    clearance = _clearance(grid) if skipping else np.zeros((0, 0, 0), np.uint8)
    first_byte = np.zeros(len(count) + 1, np.int64)
    np.cumsum((count + 7) // 8, out=first_byte[1:])
    bits, kept = np.empty(first_byte[-1], np.uint8), np.empty(len(count), np.int64)
    contracted = (contraction is not None, contraction == "l2", float(shell), float(min_spacing))
    _mark(
        origin, direction, starts, strides, count, steps, grid, clearance, corners,
        nearest, *contracted, first_byte, bits, kept,
    )  # fmt: skip
    offsets = torch.zeros(len(count) + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(kept), 0, out=offsets[1:])
    total = int(offsets[-1])
    check_size("samples", total, limit)
    t, ray, step = torch.empty(total), torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    _fill(starts, strides, steps, first_byte, bits, offsets.numpy(), t.numpy(), ray.numpy(), step.numpy())
    return t, ray, step, offsets
