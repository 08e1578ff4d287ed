"""A trained voxel grid in a box, and how many nodes it gets.

Symbols: X, Y, Z nodes along the axes, C channels, M points. `box` is [2, 3], lowest and highest corner; the outermost
nodes lie on its faces.
"""

import torch
from torch import Tensor, nn

from nfc_splat.rendering.grids import interpolate_grid, resize_grid

Size = tuple[int, int, int]


class VoxelGrid(nn.Module):
    """Values [X, Y, Z, C] at the nodes of a box, interpolated between them and 0 outside.

    Attributes:
        values: the parameter, channels last.
        box: [2, 3].
    """

    def __init__(self, values: Tensor, box: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("box", box.clone())

    @classmethod
    def zeros(cls, box: Tensor, size: Size, channels: int) -> "VoxelGrid":
        return cls(box.new_zeros(*size, channels), box)

    @property
    def size(self) -> Size:
        """X, Y, Z."""
        return tuple(self.values.shape[:3])

    def forward(self, points: Tensor) -> Tensor:
        """points [M, 3] -> [M, C]."""
        return interpolate_grid(self.values, points, self.box[0], self.box[1])

    @torch.no_grad()
    def resize(self, size: Size) -> None:
        """Give the same box `size` nodes; the parameter is a new one."""
        self.values = nn.Parameter(resize_grid(self.values, size))


def grid_nodes(box: Tensor, size: Size) -> Tensor:
    """[X, Y, Z, 3] where the nodes lie."""
    axes = [torch.linspace(0, 1, count, device=box.device) for count in size]
    return box[0] + torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) * (box[1] - box[0])


def voxel_size(box: Tensor, voxels: int) -> float:
    """Side of one of `voxels` cubes that fill the box."""
    return float(((box[1] - box[0]).double().prod() / voxels) ** (1 / 3))


def grid_size(box: Tensor, voxels: int) -> Size:
    """Nodes along each axis: as many as sides of `voxels` cubes that fill the box fit into it, cut down to whole ones.

    A count that misses a whole number by rounding alone counts as that number.
    """
    counts = (box[1] - box[0]).double() / voxel_size(box, voxels)
    x, y, z = (max(2, int(count + 1e-4)) for count in counts.tolist())
    return x, y, z
