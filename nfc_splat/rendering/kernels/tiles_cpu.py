"""Tile binning and alpha compositing of projected Gaussians, forward and backward, compiled by numba.

The image is cut into tiles of 8x8 pixels. Every Gaussian goes to exactly the tiles that its 1/255 ellipse touches, in
depth order, so a tile's list is sorted without sorting per tile. Within a tile the loops run over the 64 pixels with a
constant trip count and no branches: that is the shape that LLVM vectorises.

Symbols: N Gaussians, I intersections (Gaussian, tile), D channels (a multiple of CHANNELS), H rows, W columns.
A Gaussian's row in `splats` [N, 4 + D] is a, s, r, opacity, channels; alpha = opacity * exp(-sigma) with
2 sigma = a (dx + s dy)^2 + r dy^2 and (dx, dy) = mean - pixel centre. This is the inverse 2D covariance, "conic"
(A, B, C) = (a, a s, r + a s^2), after one step of Cholesky: a needle's sigma does not cancel and is never negative.
Conventions are gsplat's: alpha is capped at 0.999, skipped below 1/255, and the Gaussian that would bring the
transmittance T to 1e-4 or less ends the pixel and is not drawn.
"""

import numpy as np
from numba import prange

from nfc_splat.rendering.kernels.numba_tools import exp2_negative, f32, inlined, kernel, parallel_kernel, reduction

TILE = 8
PIXELS = TILE * TILE
CHANNELS = 4  # composited at a time: RGB and depth. A fixed number keeps offsets constant; more come in groups.
ALPHA_MIN, ALPHA_MAX, T_STOP = f32(1.0 / 255.0), f32(0.999), f32(1e-4)
HALF_LOG2_E = f32(-0.5 * 1.4426950408889634)  # exp(-x / 2) = 2^(HALF_LOG2_E x)
STOP_TEST_EVERY = 8  # Gaussians between two looks at whether every pixel of the tile has ended

# Rows of a tile's scratch buffer, PIXELS floats each. One buffer and constant offsets let LLVM see that rows never
# overlap, which separate arrays would not.
ROW_X, ROW_Y, ROW_T, ROW_C0, ROW_C1, ROW_C2, ROW_C3, ROW_WEIGHT, ROW_SIGMA, ROW_BEHIND = range(10)
ROWS = 10


# ---------------------------------------------------------------------------------------------- depth order


@kernel
def depth_order(depths, visible):
    """Indices of the `visible` Gaussians, nearest first, ties by index: a radix sort of the (positive) depths' bits."""
    keys = np.empty(visible.size, np.uint32)
    order = np.empty(visible.size, np.int32)
    bits = depths.view(np.uint32)
    for k in range(visible.size):
        order[k] = visible[k]
        keys[k] = bits[visible[k]]
    other_keys, other_order = np.empty_like(keys), np.empty_like(order)
    for digit in range(3):
        shift = np.uint32(11 * digit)
        counts = np.zeros(2049, np.int64)
        for k in range(keys.size):
            counts[((keys[k] >> shift) & np.uint32(2047)) + 1] += 1
        for value in range(2048):
            counts[value + 1] += counts[value]
        for k in range(keys.size):
            value = (keys[k] >> shift) & np.uint32(2047)
            other_keys[counts[value]], other_order[counts[value]] = keys[k], order[k]
            counts[value] += 1
        keys, other_keys, order, other_order = other_keys, keys, other_order, order
    return order


# ---------------------------------------------------------------------------------------------- binning


@kernel
def _tile_rows(means2d, radii, i, tiles_y):
    """First and one-past-last tile row that a Gaussian's radius reaches."""
    first = np.floor((means2d[i, 1] - radii[i, 1] - 0.5) / TILE)
    last = np.floor((means2d[i, 1] + radii[i, 1] - 0.5) / TILE) + 1.0
    return int(min(max(first, 0.0), tiles_y)), int(min(max(last, 0.0), tiles_y))


@kernel
def _first_spans(order, means2d, radii, tiles_y):
    """Where each Gaussian of the depth order keeps its spans, one per tile row: [V + 1]."""
    first_span = np.zeros(order.size + 1, np.int64)
    for k in range(order.size):
        first, last = _tile_rows(means2d, radii, order[k], tiles_y)
        first_span[k + 1] = first_span[k] + max(last - first, 0)
    return first_span


@kernel
def _write_spans(means2d, radii, splats, i, tiles_x, tiles_y, spans):
    """Tile columns [first, last) that a Gaussian's 1/255 ellipse touches in each of its tile rows: spans [rows, 2].

    The ellipse {a (dx + s dy)^2 + r dy^2 <= threshold}, cut by the slab of a row's pixel centres, is convex, so it
    touches exactly the tiles between its leftmost and rightmost points: the tips of the ellipse where they lie in the
    slab, else points on the slab's edges.
    """
    mx, my = np.float64(means2d[i, 0]), np.float64(means2d[i, 1])
    a, s, r = np.float64(splats[i, 0]), np.float64(splats[i, 1]), np.float64(splats[i, 2])
    threshold = 2.0 * np.log(max(255.0 * splats[i, 3], 1.0)) * 1.0001 + 1e-4  # rounding must not lose an edge pixel
    height = np.sqrt(threshold / r)
    width = np.sqrt(threshold * (1.0 / a + s * s / r))
    tip = -s / r * threshold / width
    first_row, last_row = _tile_rows(means2d, radii, i, tiles_y)
    for row in range(first_row, last_row):
        low = row * TILE + 0.5 - my
        high = low + (TILE - 1)
        if high < -height or low > height:
            spans[row - first_row, 0] = spans[row - first_row, 1] = 0
            continue
        low, high = max(low, -height), min(high, height)
        half_low = np.sqrt(max(threshold - r * low * low, 0.0) / a)
        half_high = np.sqrt(max(threshold - r * high * high, 0.0) / a)
        right = width if low <= tip <= high else max(half_low - s * low, half_high - s * high)
        left = -width if low <= -tip <= high else min(-half_low - s * low, -half_high - s * high)
        first, last = np.floor((mx + left - 0.5) / TILE), np.floor((mx + right - 0.5) / TILE) + 1.0
        spans[row - first_row, 0] = int(min(max(first, 0.0), tiles_x))
        spans[row - first_row, 1] = int(min(max(last, 0.0), tiles_x))


@parallel_kernel
def _count_tiles(order, means2d, radii, splats, tiles_x, tiles_y, first_span, chunks):
    """Every Gaussian's spans, and how many intersections each (chunk of the depth order, tile) and Gaussian has."""
    spans = np.empty((first_span[-1], 2), np.int32)
    per_tile = np.zeros((chunks, tiles_x * tiles_y), np.int64)
    per_gaussian = np.zeros(order.size + 1, np.int64)
    for chunk in prange(chunks):
        for k in range(chunk * order.size // chunks, (chunk + 1) * order.size // chunks):
            first_row, _ = _tile_rows(means2d, radii, order[k], tiles_y)
            own = spans[first_span[k] : first_span[k + 1]]
            _write_spans(means2d, radii, splats, order[k], tiles_x, tiles_y, own)
            for row in range(len(own)):
                base = (first_row + row) * tiles_x
                for tile in range(base + own[row, 0], base + own[row, 1]):
                    per_tile[chunk, tile] += 1
                per_gaussian[k + 1] += max(own[row, 1] - own[row, 0], 0)
    return spans, per_tile, per_gaussian


@parallel_kernel
def _fill_tiles(order, means2d, radii, tiles_x, tiles_y, first_span, spans, cursors, first_slot, gaussian_ids, slots):
    """Write every tile's list of Gaussian ids, in depth order, and every Gaussian's list of slots in those lists."""
    chunks = cursors.shape[0]
    for chunk in prange(chunks):
        for k in range(chunk * order.size // chunks, (chunk + 1) * order.size // chunks):
            first_row, _ = _tile_rows(means2d, radii, order[k], tiles_y)
            intersection = first_slot[k]
            for span in range(first_span[k], first_span[k + 1]):
                base = (first_row + span - first_span[k]) * tiles_x
                for tile in range(base + spans[span, 0], base + spans[span, 1]):
                    slot = cursors[chunk, tile]
                    gaussian_ids[slot] = order[k]
                    slots[intersection] = slot
                    cursors[chunk, tile] = slot + 1
                    intersection += 1


@kernel
def _prefix_sums(per_tile, per_gaussian):
    """Turn counts into first slots: per tile and, within it, per chunk; and per Gaussian."""
    chunks, tiles = per_tile.shape
    offsets = np.empty(tiles + 1, np.int64)
    total = 0
    for tile in range(tiles):
        offsets[tile] = total
        for chunk in range(chunks):
            count = per_tile[chunk, tile]
            per_tile[chunk, tile] = total
            total += count
    offsets[tiles] = total
    for k in range(per_gaussian.size - 1):
        per_gaussian[k + 1] += per_gaussian[k]
    return offsets


@kernel
def visible_indices(radii):
    """Indices of the Gaussians that were not culled."""
    return np.nonzero(radii[:, 0] > 0)[0]


def bin_gaussians(means2d, radii, depths, splats, width, height, chunks):
    """Assign Gaussians to tiles.

    Args:
        means2d: [N, 2] float32. radii: [N, 2] int32, 0 = culled. depths: [N] float32 > 0 where not culled.
        splats: [N, 4 + D] float32 rows as in the module docstring.
        chunks: pieces of work; the result does not depend on it.

    Returns:
        order [V] int32: visible Gaussians by depth. gaussian_ids [I] int32: the tiles' lists one after another, tile t
        at offsets[t] : offsets[t + 1]. slots [I] int32: where in them each Gaussian stands, order[k] at
        first_slot[k] : first_slot[k + 1].
    """
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    order = depth_order(depths, visible_indices(radii))
    first_span = _first_spans(order, means2d, radii, tiles_y)
    spans, per_tile, first_slot = _count_tiles(order, means2d, radii, splats, tiles_x, tiles_y, first_span, chunks)
    offsets = _prefix_sums(per_tile, first_slot)
    if offsets[-1] >= 2**31:
        raise ValueError(f"{offsets[-1]:,} intersections of Gaussians and tiles; at most {2**31 - 1:,} can be numbered")
    gaussian_ids, slots = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int32)
    _fill_tiles(order, means2d, radii, tiles_x, tiles_y, first_span, spans, per_tile, first_slot, gaussian_ids, slots)
    return order, offsets, gaussian_ids, slots, first_slot


# ---------------------------------------------------------------------------------------------- compositing


@inlined
def _alpha(buffer, p, mean_x, mean_y, a, s, r, opacity):
    """Uncapped alpha of one pixel, 0 where it is skipped."""
    dy = mean_y - buffer[ROW_Y * PIXELS + p]
    along = mean_x - buffer[ROW_X * PIXELS + p] + s * dy
    alpha = opacity * exp2_negative((HALF_LOG2_E * a) * along * along + (HALF_LOG2_E * r) * dy * dy)
    return alpha if alpha >= ALPHA_MIN else f32(0.0)


@kernel
def _start_tile(buffer, tile_x, tile_y, width, height):
    """Pixel centres of a tile; T is 1 inside the image and -1 (ended) outside; the rest is 0."""
    buffer[:] = f32(0.0)
    for p in range(PIXELS):
        column, row = tile_x * TILE + (p & (TILE - 1)), tile_y * TILE + (p >> 3)
        buffer[ROW_X * PIXELS + p] = f32(column) + f32(0.5)
        buffer[ROW_Y * PIXELS + p] = f32(row) + f32(0.5)
        buffer[ROW_T * PIXELS + p] = f32(1.0) if (column < width) & (row < height) else f32(-1.0)


@kernel
def _all_ended(buffer):
    """Whether no pixel of the tile has T > 0 (an ended pixel keeps its T with a minus sign)."""
    alive = np.int32(0)
    for p in range(PIXELS):
        alive += np.int32(buffer[ROW_T * PIXELS + p] > f32(0.0))
    return alive == 0


@kernel
def _blend(buffer, mean_x, mean_y, a, s, r, opacity, c0, c1, c2, c3):
    """Draw one Gaussian over the tile: channels += alpha T c, and T moves behind it."""
    for p in range(PIXELS):
        alpha = min(_alpha(buffer, p, mean_x, mean_y, a, s, r, opacity), ALPHA_MAX)
        T = buffer[ROW_T * PIXELS + p]
        weight = alpha * max(T, f32(0.0))
        left = T - weight
        ended = left <= T_STOP
        weight = f32(0.0) if ended else weight
        buffer[ROW_T * PIXELS + p] = -abs(T) if ended else left
        buffer[ROW_C0 * PIXELS + p] += weight * c0
        buffer[ROW_C1 * PIXELS + p] += weight * c1
        buffer[ROW_C2 * PIXELS + p] += weight * c2
        buffer[ROW_C3 * PIXELS + p] += weight * c3


@parallel_kernel
def composite_forward(means2d, splats, group, offsets, gaussian_ids, backgrounds, width, height, workers):
    """Composite every tile front to back, for the channels of `group` (columns 4 + CHANNELS group of `splats`).

    Returns:
        colors [H, W, CHANNELS] with the background [CHANNELS], transmittances [H, W], and ends [tiles]: the slot at
        which each tile stopped reading its list.
    """
    tiles_x, tiles, first = -(-width // TILE), offsets.size - 1, 4 + CHANNELS * group
    colors, transmittances = np.empty((height, width, CHANNELS), f32), np.empty((height, width), f32)
    ends = np.empty(tiles, np.int64)
    for worker in prange(workers):
        buffer = np.empty(ROWS * PIXELS, f32)
        for tile in range(worker, tiles, workers):
            tile_x, tile_y = tile % tiles_x, tile // tiles_x
            _start_tile(buffer, tile_x, tile_y, width, height)
            slot, end = offsets[tile], offsets[tile + 1]
            while slot < end:
                i = gaussian_ids[slot]
                a, s, r, opacity = splats[i, 0], splats[i, 1], splats[i, 2], splats[i, 3]
                c0, c1, c2, c3 = splats[i, first], splats[i, first + 1], splats[i, first + 2], splats[i, first + 3]
                _blend(buffer, means2d[i, 0], means2d[i, 1], a, s, r, opacity, c0, c1, c2, c3)
                slot += 1
                if (slot - offsets[tile]) % STOP_TEST_EVERY == 0 and _all_ended(buffer):
                    break
            ends[tile] = slot
            for row in range(tile_y * TILE, min(tile_y * TILE + TILE, height)):
                for column in range(tile_x * TILE, min(tile_x * TILE + TILE, width)):
                    p = (row - tile_y * TILE) * TILE + column - tile_x * TILE
                    T = abs(buffer[ROW_T * PIXELS + p])
                    transmittances[row, column] = T
                    for channel in range(CHANNELS):
                        drawn = buffer[(ROW_C0 + channel) * PIXELS + p]
                        colors[row, column, channel] = drawn + T * backgrounds[channel]
    return colors, transmittances, ends  # fmt: skip


@kernel
def _start_backward(buffer, tile_x, tile_y, colors, transmittances, v_colors, v_alphas):
    """Load a tile's cotangents; Q starts as all the cotangent-weighted light that reaches each pixel."""
    height, width = transmittances.shape
    for row in range(tile_y * TILE, min(tile_y * TILE + TILE, height)):
        for column in range(tile_x * TILE, min(tile_x * TILE + TILE, width)):
            p = (row - tile_y * TILE) * TILE + column - tile_x * TILE
            light = f32(0.0)
            for channel in range(CHANNELS):
                v = v_colors[row, column, channel]
                buffer[(ROW_C0 + channel) * PIXELS + p] = v
                light += v * colors[row, column, channel]
            buffer[ROW_BEHIND * PIXELS + p] = light - v_alphas[row, column] * transmittances[row, column]


@kernel
def _blend_backward(buffer, mean_x, mean_y, a, s, r, opacity, c0, c1, c2, c3):
    """As `_blend`, and the loss gradient with respect to each pixel's sigma.

    With v the colours' cotangent and Q the cotangent-weighted light from behind the Gaussian (drawn light, background
    and alpha together), dL/dalpha = T (c . v) - Q / (1 - alpha) and dL/dsigma = -alpha dL/dalpha, 0 where alpha is
    capped.
    """
    for p in range(PIXELS):
        raw = _alpha(buffer, p, mean_x, mean_y, a, s, r, opacity)
        alpha = min(raw, ALPHA_MAX)
        T = buffer[ROW_T * PIXELS + p]
        weight = alpha * max(T, f32(0.0))
        left = T - weight
        ended = left <= T_STOP
        weight = f32(0.0) if ended else weight
        dot = c0 * buffer[ROW_C0 * PIXELS + p] + c1 * buffer[ROW_C1 * PIXELS + p]
        dot += c2 * buffer[ROW_C2 * PIXELS + p] + c3 * buffer[ROW_C3 * PIXELS + p]
        behind = buffer[ROW_BEHIND * PIXELS + p] - weight * dot
        v_alpha = T * dot - behind / (f32(1.0) - alpha)
        still = ended | (raw > ALPHA_MAX)
        buffer[ROW_T * PIXELS + p] = -abs(T) if ended else left
        buffer[ROW_WEIGHT * PIXELS + p] = weight
        buffer[ROW_BEHIND * PIXELS + p] = behind
        buffer[ROW_SIGMA * PIXELS + p] = f32(0.0) if still else -alpha * v_alpha


@reduction
def _sum_gradients(buffer, mean_x, mean_y, gradient):
    """Sums over the tile into gradient[0:10]: moments 1, dx, dy, dx^2, dx dy, dy^2 of dL/dsigma, then dL/dchannels."""
    m, mx, my, mxx, mxy, myy = f32(0), f32(0), f32(0), f32(0), f32(0), f32(0)
    v0, v1, v2, v3 = f32(0), f32(0), f32(0), f32(0)
    for p in range(PIXELS):
        v_sigma, weight = buffer[ROW_SIGMA * PIXELS + p], buffer[ROW_WEIGHT * PIXELS + p]
        dx = mean_x - buffer[ROW_X * PIXELS + p]
        dy = mean_y - buffer[ROW_Y * PIXELS + p]
        vx, vy = v_sigma * dx, v_sigma * dy
        m += v_sigma
        mx += vx
        my += vy
        mxx += vx * dx
        mxy += vx * dy
        myy += vy * dy
        v0 += weight * buffer[ROW_C0 * PIXELS + p]
        v1 += weight * buffer[ROW_C1 * PIXELS + p]
        v2 += weight * buffer[ROW_C2 * PIXELS + p]
        v3 += weight * buffer[ROW_C3 * PIXELS + p]
    gradient[0], gradient[1], gradient[2], gradient[3], gradient[4], gradient[5] = m, mx, my, mxx, mxy, myy
    gradient[6], gradient[7], gradient[8], gradient[9] = v0, v1, v2, v3


@reduction
def _sum_absolute(buffer, mean_x, mean_y, a, s, r, gradient):
    """Sums over the tile of |dL/dmean_x| and |dL/dmean_y| per pixel (AbsGS, Ye et al. 2024) into gradient[10:12]."""
    ax, ay = f32(0), f32(0)
    for p in range(PIXELS):
        v_sigma = buffer[ROW_SIGMA * PIXELS + p]
        dy = mean_y - buffer[ROW_Y * PIXELS + p]
        v_along = a * (mean_x - buffer[ROW_X * PIXELS + p] + s * dy)
        ax += abs(v_sigma * v_along)
        ay += abs(v_sigma * (s * v_along + r * dy))
    gradient[10], gradient[11] = ax, ay


@parallel_kernel
def composite_backward(
    means2d, splats, group, offsets, ends, gaussian_ids, colors, transmittances, v_colors, v_alphas, workers, absgrad
):  # fmt: skip
    """Gradient of a loss with respect to every intersection's Gaussian, front to back again, for one channel group.

    Returns:
        gradients [I, 10 (+ 2)] beside `gaussian_ids`: see `_sum_gradients` and `_sum_absolute`. One row per
        intersection needs no atomics, and summing them in a fixed order (`gather_gradients`) makes the result
        independent of the number of threads.
    """
    height, width = transmittances.shape
    tiles_x, tiles, first = -(-width // TILE), offsets.size - 1, 4 + CHANNELS * group
    gradients = np.empty((gaussian_ids.size, 12 if absgrad else 10), f32)
    for worker in prange(workers):
        buffer = np.empty(ROWS * PIXELS, f32)
        for tile in range(worker, tiles, workers):
            tile_x, tile_y = tile % tiles_x, tile // tiles_x
            _start_tile(buffer, tile_x, tile_y, width, height)
            _start_backward(buffer, tile_x, tile_y, colors, transmittances, v_colors, v_alphas)
            gradients[ends[tile] : offsets[tile + 1]] = f32(0.0)
            for slot in range(offsets[tile], ends[tile]):
                i = gaussian_ids[slot]
                mean_x, mean_y = means2d[i, 0], means2d[i, 1]
                a, s, r, opacity = splats[i, 0], splats[i, 1], splats[i, 2], splats[i, 3]
                c0, c1, c2, c3 = splats[i, first], splats[i, first + 1], splats[i, first + 2], splats[i, first + 3]
                _blend_backward(buffer, mean_x, mean_y, a, s, r, opacity, c0, c1, c2, c3)
                _sum_gradients(buffer, mean_x, mean_y, gradients[slot])
                if absgrad:
                    _sum_absolute(buffer, mean_x, mean_y, a, s, r, gradients[slot])
    return gradients


@parallel_kernel
def gather_gradients(order, first_slot, slots, gradients, splats, group, v_means2d, v_splats, v_absolute, workers):
    """Sum every Gaussian's rows, turn moments into gradients and add them up.

    Adds to v_means2d [N, 2], v_splats [N, 4 + D] and, where it has rows, v_absolute [N, 2] at the visible Gaussians.
    The first three columns of v_splats are the gradient of the conic (A, B, C), which is what projection goes on with.
    """
    for worker in prange(workers):
        total = np.empty(gradients.shape[1], f32)
        for k in range(worker * order.size // workers, (worker + 1) * order.size // workers):
            i = order[k]
            total[:] = f32(0.0)
            for k_slot in range(first_slot[k], first_slot[k + 1]):
                slot = slots[k_slot]
                for j in range(total.size):
                    total[j] += gradients[slot, j]
            v_along = splats[i, 0] * (total[1] + splats[i, 1] * total[2])
            v_means2d[i, 0] += v_along
            v_means2d[i, 1] += splats[i, 1] * v_along + splats[i, 2] * total[2]
            v_splats[i, 0] += f32(0.5) * total[3]
            v_splats[i, 1] += total[4]
            v_splats[i, 2] += f32(0.5) * total[5]
            v_splats[i, 3] -= total[0] / splats[i, 3]
            for channel in range(CHANNELS):
                v_splats[i, 4 + CHANNELS * group + channel] = total[6 + channel]
            if v_absolute.shape[0] > 0:
                v_absolute[i, 0] += total[10]
                v_absolute[i, 1] += total[11]
