"""The hash encoding in plain torch, any floating dtype and device: the oracle of the tests, and what runs where there
is no faster one.

Symbols: M points, L levels, F features per level.
"""

import torch
from torch import Tensor

from nfc_splat.rendering.hash_encoding import HashLevels

PRIMES = (1, 2654435761, 805459861)  # per axis (Instant-NGP, Eq. 4)


def hash_encode_reference(points: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """`hash_encode` for points in [0, 1]; see there."""
    parts = []
    for level in range(levels.n_levels):
        values, fractions = _corners(points, table, levels, level)
        weights = torch.ones_like(fractions[:, 0])[:, None].expand(-1, 8)
        for axis in range(3):
            weights = weights * _share(fractions[:, axis, None], axis)
        parts.append((weights[..., None] * values).sum(1))
    return torch.cat(parts, 1)


def hash_encode_with_jacobian_reference(points: Tensor, table: Tensor, levels: HashLevels) -> tuple[Tensor, Tensor]:
    """`hash_encode_with_jacobian` for points in [0, 1]; see there."""
    features, slopes = [], []
    for level in range(levels.n_levels):
        values, fractions = _corners(points, table, levels, level)
        shares = [_share(fractions[:, axis, None], axis) for axis in range(3)]
        features.append(((shares[0] * shares[1] * shares[2])[..., None] * values).sum(1))
        x, y, z = (share.detach() for share in shares)
        signs = [_share(torch.ones_like(fractions[:, :1]), axis) * 2 - 1 for axis in range(3)]
        weights = torch.stack([signs[0] * y * z, x * signs[1] * z, x * y * signs[2]], -1) * levels.scales[level]
        slopes.append(torch.einsum("mca,mcf->mfa", weights, values))
    return torch.cat(features, 1), torch.cat(slopes, 1)


def _corners(points: Tensor, table: Tensor, levels: HashLevels, level: int) -> tuple[Tensor, Tensor]:
    """The table at the eight corners [M, 8, F] of each point's cell, and the point's place in it [M, 3]."""
    position = points * levels.scales[level] + 0.5
    cell = position.detach().nan_to_num(0.0).floor()
    vertices = cell.long()[:, None] + _offsets(points.device)  # [M, 8, 3]
    x, y, z = vertices.unbind(-1)
    if levels.hashed[level]:
        row = (x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])
    else:
        n = levels.resolutions[level]
        row = x + y * n + z * n**2
    return table[levels.starts[level] + row % levels.sizes[level]], position - cell


def _offsets(device: torch.device) -> Tensor:
    """[8, 3] which corner of a cell: x changes fastest."""
    corner = torch.arange(8, device=device)
    return torch.stack([corner & 1, (corner >> 1) & 1, corner >> 2], -1)


def _share(fraction: Tensor, axis: int) -> Tensor:
    """[M, 8] of [M, 1]: how much of each corner along one axis, `fraction` of the upper and the rest of the lower."""
    upper = _offsets(fraction.device)[:, axis].bool()
    return torch.where(upper, fraction, 1 - fraction)
