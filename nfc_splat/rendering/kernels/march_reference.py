"""Marching through an occupancy grid in plain torch: every candidate of every ray is looked at.

The oracle of the numba kernel, which gives the same samples to the bit, and what runs on a CUDA device.

Symbols: R rays, S candidates of the ray that has most, M samples that are left, n the norm of a position.
"""

import torch
from torch import Tensor

from nfc_splat.rendering.occupancy import check_size, contract, is_inner, rounded_sqrt

CHUNK = 2**23  # candidates looked at together, at about 100 bytes each


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
    longest = int(counts.max()) if len(counts) else 0
    if table is None:
        table = torch.arange(longest, device=origins.device, dtype=origins.dtype)
    parts, kept = [(start[:0], counts[:0], counts[:0])], 0
    for first in range(0, len(counts), max(1, CHUNK // max(1, longest))):
        part = slice(first, first + max(1, CHUNK // max(1, longest)))
        t = start[part, None] + stride[part, None] * table[:longest]
        positions = origins[part, None] + directions[part, None] * t[..., None]
        keep = torch.arange(longest, device=t.device) < counts[part, None]
        if contraction is not None:
            inner = contract(positions, contraction, shell)
            if min_spacing > 0:
                keep &= _thinned(positions, inner, contraction, min_spacing)
            positions = inner
        keep &= ((positions >= box[0]) & (positions <= box[1])).all(-1)
        if occupancy is not None:
            keep &= _occupied(positions, occupancy, box, nearest)
        ray, step = keep.nonzero(as_tuple=True)
        parts.append((t[ray, step], ray + first, step))
        kept += len(ray)
        check_size("samples", kept, limit)
    t, ray, step = (torch.cat(column) for column in zip(*parts, strict=True))
    offsets = torch.cat([counts.new_zeros(1), torch.bincount(ray, minlength=len(counts)).cumsum(0)])
    return t, ray, step, offsets


def _occupied(positions: Tensor, occupancy: Tensor, box: Tensor, nearest: bool) -> Tensor:
    """[R, S] the entries that positions fall on; those of positions outside the box mean nothing."""
    place = ((positions - box[0]) * box[2]).nan_to_num()
    entry = place.floor()
    if nearest:
        entry += (place - entry >= 0.5).to(entry)
    last = torch.tensor(occupancy.shape, device=entry.device, dtype=entry.dtype) - 1
    x, y, z = entry.clamp(torch.zeros_like(last), last).long().unbind(-1)
    return occupancy[x, y, z]


def _thinned(positions: Tensor, contracted: Tensor, norm: str, min_spacing: float) -> Tensor:
    """[R, S] the inner candidates, and outer ones more than `min_spacing` of contracted path apart."""
    keep = is_inner(positions, norm)[..., 0]
    dx, dy, dz = contracted.diff(dim=1).unbind(-1)
    lengths = rounded_sqrt(dx * dx + dy * dy + dz * dz)
    path = lengths.new_zeros(len(lengths))
    spacing = torch.tensor(min_spacing, device=positions.device, dtype=positions.dtype)
    for k in range(lengths.shape[1]):
        path = path + lengths[:, k]
        keep[:, k + 1] |= path > spacing
        path = torch.where(keep[:, k + 1], 0, path)
    return keep
