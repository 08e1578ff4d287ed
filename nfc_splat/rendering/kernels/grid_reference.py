"""Voxel grids in plain torch: the oracle of the tests, any float dtype and device, twice differentiable.

The rules are those of torch's `grid_sample` with `align_corners=True` and zero padding: the first and the last node of
an axis lie on the box's faces, and every node outside the grid counts as 0.

Symbols: X, Y, Z nodes along the axes, C channels, M points.
"""

import itertools

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def interpolate_reference(grid: Tensor, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Trilinear interpolation; see `nfc_splat.rendering.grids.interpolate_grid`."""
    size = torch.tensor(grid.shape[:3], device=grid.device)
    place = (points - low) * ((size - 1) / (high - low))
    near = ((place > -1) & (place < size)).all(dim=-1)  # False for NaN
    place = torch.where(near[:, None], place, torch.zeros_like(place))
    cell = place.detach().floor()
    fraction, cell = place - cell, cell.long()
    total = grid.new_zeros(len(points), grid.shape[3])
    for corner in itertools.product((0, 1), repeat=3):
        far = torch.tensor(corner, device=grid.device)
        node = cell + far
        inside = near & ((node >= 0) & (node < size)).all(dim=-1)
        weight = torch.where(far.bool(), fraction, 1 - fraction).prod(dim=-1) * inside
        node = torch.where(inside[:, None], node, torch.zeros_like(node))
        total = total + weight[:, None] * grid[node.unbind(dim=-1)]
    return total


def interpolate_grid_sample(grid: Tensor, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same by torch's own operation, on a view of the grid: what runs on a GPU.

    Its backward pass adds up with atomics, so that the last bits of the grid's gradient vary from run to run.
    """
    place = (points - low) * (2 / (high - low)) - 1
    usable = place.isfinite().all(dim=-1, keepdim=True)
    place = torch.where(usable, place, torch.full_like(place, -3.0))  # outside the box
    volume = grid.permute(3, 0, 1, 2)[None]
    values = grid_sample(volume, place.flip(-1)[None, :, None, None], align_corners=True)
    return values[0, :, :, 0, 0].T


def add_total_variation_grad_reference(grid: Tensor, grad: Tensor, weight: float, dense: bool) -> None:
    """Total-variation gradient, added in place; see `nfc_splat.rendering.grids.add_total_variation_grad`."""
    total = torch.zeros_like(grid)
    for axis in range(3):
        pull = grid.diff(dim=axis).clamp(-1, 1)
        count = grid.shape[axis] - 1
        total.narrow(axis, 1, count).add_(pull)
        total.narrow(axis, 0, count).sub_(pull)
    if not dense:
        total = torch.where(grad != 0, total, torch.zeros_like(total))
    grad.add_(total, alpha=weight / 6)
