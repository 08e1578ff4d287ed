"""Voxel grids: values at the nodes of a regular lattice that fills a box, interpolated between them.

A grid is [X, Y, Z, C], channels last: a point needs the same eight nodes for all of its channels, and so finds them in
four places of the memory instead of four times C. Published checkpoints keep channels first ([1, C, X, Y, Z]); convert
with `permute`.

Symbols: X, Y, Z nodes along the axes (2 or more), C channels, M points. The first and the last node of an axis lie on
the faces of the box (torch's `align_corners=True`).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool3d

from nfc_splat.rendering.kernels.backends import choose_kernel

Backend = Literal["auto", "reference", "cpu", "cuda"]

_REFERENCE, _CPU = "nfc_splat.rendering.kernels.grid_reference", "nfc_splat.rendering.kernels.grid_cpu"
INTERPOLATION = {
    "reference": (_REFERENCE, "interpolate_reference"),
    "cpu": (_CPU, "interpolate_cpu"),
    "cuda": (_REFERENCE, "interpolate_grid_sample"),
}
TOTAL_VARIATION = {
    "reference": (_REFERENCE, "add_total_variation_grad_reference"),
    "cpu": (_CPU, "add_total_variation_grad_cpu"),
    "cuda": (_REFERENCE, "add_total_variation_grad_reference"),
}


def interpolate_grid(
    grid: Tensor,  # [X, Y, Z, C]
    points: Tensor,  # [M, 3] world
    low: Tensor,  # [3]
    high: Tensor,  # [3]
    backend: Backend = "auto",
) -> Tensor:
    """Trilinear interpolation of a grid that fills the box from `low` to `high`.

    The same function as torch's `grid_sample(align_corners=True)` with zero padding: nodes outside the grid count as
    0, so values fade to 0 within one cell around the box. A point that is NaN or infinite gives 0. Gradients reach
    `grid` (dense) and `points`.

    Args:
        low, high: corners of the box, in the points' units.
        backend: "auto" is "cuda" for tensors on a CUDA device and "cpu" for those in main memory. "reference" is plain
            torch, any float dtype, twice differentiable, slow.

    Returns:
        [M, C] values.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or the box is empty; the message names it.
        UserError: the backend asked for cannot serve these tensors; the message says what to do.
    """
    _check_grid(grid)
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be [M, 3]; got {list(points.shape)}")
    for name, tensor in (("points", points), ("low", low), ("high", high)):
        if tensor.dtype != grid.dtype or tensor.device != grid.device:
            raise ValueError(
                f"{name} must be {grid.dtype} on {grid.device}, like the grid; got {tensor.dtype} on {tensor.device}"
            )
    if low.shape != (3,) or high.shape != (3,):
        raise ValueError(f"low and high must be [3]; got {list(low.shape)} and {list(high.shape)}")
    function = choose_kernel("voxel grids", INTERPOLATION, grid, backend)
    return function(grid, points, low, high)


def add_total_variation_grad(
    grid: Tensor,  # [X, Y, Z, C]
    grad: Tensor,  # [X, Y, Z, C]
    weight: float,
    dense: bool,
    backend: Backend = "auto",
) -> None:
    """Add to `grad` the gradient of a Huber-like total variation of `grid`, DVGO's way, in place.

    Every node is pulled towards each of its six neighbours by weight / 6 * clamp(own - neighbour, -1, 1). All axes have
    the same weight. DVGO's own kernel gives the x axis the weight that is meant for z; the two agree for the cubes that
    it is used on.

    Args:
        grad: contiguous; changed.
        weight: what multiplies the sum over the neighbours, times 6.
        dense: everywhere; otherwise only where `grad` is not exactly 0.
        backend: as for `interpolate_grid`.

    Raises:
        ValueError: the shapes differ, or `grad` is not contiguous.
        UserError: the backend asked for cannot serve these tensors.
    """
    _check_grid(grid)
    if grad.shape != grid.shape or not grad.is_contiguous():
        raise ValueError(f"grad must be contiguous and {list(grid.shape)}, like the grid; got {list(grad.shape)}")
    function = choose_kernel("voxel grids", TOTAL_VARIATION, grid, backend)
    with torch.no_grad():
        function(grid, grad, weight, dense)


def resize_grid(grid: Tensor, size: tuple[int, int, int]) -> Tensor:
    """A grid [X, Y, Z, C] with `size` nodes in the same box, interpolated trilinearly; contiguous."""
    _check_grid(grid)
    if min(size) < 2:
        raise ValueError(f"a grid needs 2 or more nodes along each axis; got {size}")
    first = grid.permute(3, 0, 1, 2)[None].contiguous()
    resized = interpolate(first, size=tuple(size), mode="trilinear", align_corners=True)
    return resized[0].permute(1, 2, 3, 0).contiguous()


def max_pool_grid(grid: Tensor) -> Tensor:
    """The largest value among each node [X, Y, Z] and its 26 neighbours."""
    if grid.dim() != 3:
        raise ValueError(f"grid must be [X, Y, Z]; got {list(grid.shape)}")
    for axis in range(3):  # a box is the product of three lines, each a third of the work
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 3, 1
        grid = max_pool3d(grid[None, None], kernel, stride=1, padding=padding)[0, 0]
    return grid


def _check_grid(grid: Tensor) -> None:
    if grid.dim() != 4 or min(grid.shape[:3]) < 2 or grid.shape[3] < 1 or not grid.is_floating_point():
        raise ValueError(
            f"grid must be floating point [X, Y, Z, C] with 2 or more nodes along each axis and 1 or more channels; "
            f"got {grid.dtype} {list(grid.shape)}"
        )
