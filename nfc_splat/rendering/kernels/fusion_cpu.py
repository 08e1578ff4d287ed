"""Numba kernels: truncated signed distances of lattice nodes, and colours of points, from depth images of many views.

The same functions in plain torch are in `fusion_reference`. Every node and point is one thread's own and sums over the
views in their order, so results do not depend on the number of threads. Places are computed in float64: scenes may lie
far from the origin.

Symbols: V views, n blocks of K^3 nodes, N points, P pixels of all views, row by row. A view has the pose
[R | t] (world to camera, rows), the lens fx, fy, cx, cy (pixel centres at +0.5) and its first pixel's number. Depth is
camera-space z; 0 where nothing is seen.
"""

import math

import numba

from nfc_splat.rendering.kernels.numba_tools import f32, inlined, parallel_kernel


@inlined
def _depth_at(depth, first, width, height, u, v, column, row, limit):
    """Depth at (u, v) in pixel (row, column): interpolated between four pixels that are less than `limit` apart in
    depth, else the pixel's own."""
    own = depth[first + row * width + column]
    left, top = math.floor(u - 0.5), math.floor(v - 0.5)
    if own <= f32(0.0) or left < 0 or top < 0 or left + 1 >= width or top + 1 >= height:
        return own
    corner = first + top * width + left
    a, b, c, d = depth[corner], depth[corner + 1], depth[corner + width], depth[corner + width + 1]
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    if low <= f32(0.0) or high - low >= limit:
        return own
    x, y = f32(u - 0.5 - left), f32(v - 0.5 - top)
    return (a + (b - a) * x) * (f32(1.0) - y) + (c + (d - c) * x) * y


@inlined
def _reaches(pose, lens, width, height, x, y, z, radius):
    """Whether a ball about (x, y, z) may be in a view."""
    cx = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]
    cy = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]
    cz = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
    inside = cz > -radius
    for axis in range(2):
        along = cx if axis == 0 else cy
        end = width if axis == 0 else height
        low, high = -lens[2 + axis] / lens[axis], (end - lens[2 + axis]) / lens[axis]
        inside &= along - low * cz > -radius * math.sqrt(1.0 + low * low)
        inside &= high * cz - along > -radius * math.sqrt(1.0 + high * high)
    return inside


@parallel_kernel
def fuse_nodes(
    corners,  # [n, 3] float64 first node of each block
    cell,  # between nodes
    poses,  # [V, 3, 4] float64
    lenses,  # [V, 4] float64
    sizes,  # [V, 2] int64 width, height
    firsts,  # [V] int64
    depth,  # [P] float32
    truncation,  # world length
    distance,  # [n, K, K, K] float32, filled: mean of distance / truncation, in [-1, 1], positive before the surface
    weight,  # [n, K, K, K] float32, filled: how many views it is the mean of; 0 where none sees the node
):
    """A view tells of a node unless its surface hides the node by more than `truncation` (Curless and Levoy 1996).

    The distance is along the ray, (depth - z) times the length of the ray per z.
    """
    side = distance.shape[1]
    half = 0.5 * cell * (side - 1)
    limit = f32(truncation)
    for task in numba.prange(corners.shape[0] * side):
        block, i = task // side, task % side
        sums, counts = distance[block, i], weight[block, i]
        sums[:] = f32(0.0)
        counts[:] = f32(0.0)
        x0, y0, z0 = corners[block, 0] + i * cell, corners[block, 1], corners[block, 2]
        for view in range(poses.shape[0]):
            pose, lens = poses[view], lenses[view]
            width, height, first = sizes[view, 0], sizes[view, 1], firsts[view]
            if not _reaches(pose, lens, width, height, x0, y0 + half, z0 + half, 1.415 * half):
                continue
            for j in range(side):
                y = y0 + j * cell
                for k in range(side):
                    z = z0 + k * cell
                    away = pose[2, 0] * x0 + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
                    if away <= 0.0:
                        continue
                    right = (pose[0, 0] * x0 + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]) / away
                    down = (pose[1, 0] * x0 + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]) / away
                    u, v = lens[0] * right + lens[2], lens[1] * down + lens[3]
                    if not (0.0 <= u < width and 0.0 <= v < height):
                        continue
                    seen = _depth_at(depth, first, width, height, u, v, int(u), int(v), limit)
                    if seen <= f32(0.0):
                        continue
                    before = (seen - away) * math.sqrt(1.0 + right * right + down * down)
                    if before >= -truncation:
                        sums[j, k] += f32(min(before / truncation, 1.0))
                        counts[j, k] += f32(1.0)
        for j in range(side):
            for k in range(side):
                if counts[j, k] > f32(0.0):
                    sums[j, k] /= counts[j, k]


@parallel_kernel
def color_points(
    points,  # [N, 3] float64
    poses,  # [V, 3, 4] float64
    lenses,  # [V, 4] float64
    sizes,  # [V, 2] int64
    firsts,  # [V] int64
    depth,  # [P] float32
    pixels,  # [P, 3] uint8
    tolerance,  # world length
    colors,  # [N, 3] float32 in [0, 255], filled; 0 where no view sees the point
    weight,  # [N] float32, filled
):
    """Mean colour of the views whose surface is at the point, nearer cameras counting more, by 1 / z^2."""
    for index in numba.prange(points.shape[0]):
        x, y, z = points[index, 0], points[index, 1], points[index, 2]
        red, green, blue, total = 0.0, 0.0, 0.0, 0.0
        for view in range(poses.shape[0]):
            pose, lens = poses[view], lenses[view]
            away = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
            if away <= 0.0:
                continue
            right = (pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]) / away
            down = (pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]) / away
            u, v = lens[0] * right + lens[2], lens[1] * down + lens[3]
            if not (0.0 <= u < sizes[view, 0] and 0.0 <= v < sizes[view, 1]):
                continue
            place = firsts[view] + int(v) * sizes[view, 0] + int(u)
            seen = depth[place]
            if seen <= f32(0.0) or abs(seen - away) * math.sqrt(1.0 + right * right + down * down) > tolerance:
                continue
            share = 1.0 / (away * away)
            red += share * pixels[place, 0]
            green += share * pixels[place, 1]
            blue += share * pixels[place, 2]
            total += share
        weight[index] = f32(total)
        scale = 1.0 / total if total > 0.0 else 0.0
        colors[index, 0], colors[index, 1], colors[index, 2] = f32(red * scale), f32(green * scale), f32(blue * scale)
