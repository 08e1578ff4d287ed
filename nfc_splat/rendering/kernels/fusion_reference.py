"""The functions of `fusion_cpu` in plain torch, for all points at once and one view after the other. Float64.

Symbols: V views, N points, H rows, W columns of a view, whose depth [H, W] is camera-space z and 0 where nothing is
seen. Poses [3, 4] are world to camera, lenses [4] are fx, fy, cx, cy for pixel centres at +0.5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse(
    points: Tensor,  # [N, 3]
    poses: Tensor,  # [V, 3, 4]
    lenses: Tensor,  # [V, 4]
    depths: Sequence[Tensor],  # V times [H, W]
    truncation: float,
) -> tuple[Tensor, Tensor]:
    """[N] mean truncated signed distance in [-1, 1] per truncation, 0 where no view tells of the point, and [N] how
    many views do."""
    total, count = points.new_zeros(len(points)), points.new_zeros(len(points))
    for pose, lens, depth in zip(poses, lenses, depths, strict=True):
        image, z, ray, inside = _project(points, pose, lens, depth)
        row, column = image.floor().long().flip(-1).unbind(-1)
        seen = _interpolated(depth, image, row, column, truncation)
        before = (seen - z) * ray
        told = inside & (seen > 0) & (before >= -truncation)
        total += torch.where(told, (before / truncation).clamp(max=1), 0)
        count += told
    return total / count.clamp_min(1), count


def colors_of(
    points: Tensor,  # [N, 3]
    poses: Tensor,  # [V, 3, 4]
    lenses: Tensor,  # [V, 4]
    depths: Sequence[Tensor],  # V times [H, W]
    pictures: Sequence[Tensor],  # V times [H, W, 3]
    tolerance: float,
) -> Tensor:
    """[N, 3] mean colour, by 1 / z^2, of the views whose surface is within `tolerance` of the point; 0 without any."""
    total, weight = torch.zeros_like(points), points.new_zeros(len(points))
    for pose, lens, depth, picture in zip(poses, lenses, depths, pictures, strict=True):
        image, z, ray, inside = _project(points, pose, lens, depth)
        row, column = image.floor().long().flip(-1).unbind(-1)
        seen = depth[row, column]
        share = torch.where(inside & (seen > 0) & (((seen - z) * ray).abs() <= tolerance), z**-2, 0)
        total += share[:, None] * picture[row, column]
        weight += share
    return total / torch.where(weight > 0, weight, 1)[:, None]


def _project(points: Tensor, pose: Tensor, lens: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image points [N, 2] (x, y), z [N], length of the ray per z [N], and whether the view has the point [N]; image
    points that it has not are 0."""
    local = points @ pose[:, :3].T + pose[:, 3]
    z = local[:, 2]
    flat = local[:, :2] / torch.where(z > 0, z, 1)[:, None]
    image = flat * lens[:2] + lens[2:]
    inside = (z > 0) & (image >= 0).all(1) & (image < image.new_tensor([depth.shape[1], depth.shape[0]])).all(1)
    return torch.where(inside[:, None], image, 0), z, (1 + flat.square().sum(1)).sqrt(), inside


def _interpolated(depth: Tensor, image: Tensor, row: Tensor, column: Tensor, limit: float) -> Tensor:
    """[N] depth at image points, bilinear where the four pixels around are seen and less than `limit` apart."""
    height, width = depth.shape
    own = depth[row, column]
    left, top = (image - 0.5).floor().long().unbind(-1)
    within = (left >= 0) & (top >= 0) & (left + 1 < width) & (top + 1 < height)
    left, top = left.clamp(0, max(width - 2, 0)), top.clamp(0, max(height - 2, 0))
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    four = torch.stack([depth[top, left], depth[top, right], depth[bottom, left], depth[bottom, right]])
    smooth = within & (own > 0) & (four.amin(0) > 0) & (four.amax(0) - four.amin(0) < limit)
    x, y = (image - 0.5 - torch.stack([left, top], -1)).unbind(-1)
    a, b, c, d = four
    return torch.where(smooth, (a + (b - a) * x) * (1 - y) + (c + (d - c) * x) * y, own)
