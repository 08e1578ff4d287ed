"""Nearest neighbours in plain torch, by all distances: slow, exact in the precision of its input, on any device."""

import torch
from torch import Tensor


def nearest_neighbors_reference(
    queries: Tensor,  # [M, 3]
    points: Tensor,  # [N, 3]
    block: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Distance [M] of each query to the nearest point, and that point's index [M]."""
    found = [
        (chunk[:, None, :] - points[None, :, :]).square().sum(-1).min(dim=1) for chunk in torch.split(queries, block)
    ]
    return torch.cat([part.values for part in found]).sqrt(), torch.cat([part.indices for part in found])
