"""Strivec's tensors: where they stand, what they hold, and which cells of the scene are known to be empty.

Symbols: P points, N tensors of a scale, D cells of a vector, C ranks, X, Y, Z cells of a lattice. Boxes are [2, 3].
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfc_splat.rendering.tensor_cells import lattice_box

INITIAL = 0.2  # standard deviation of the vectors' numbers at the start


class Scale(nn.Module):
    """Tensors of one size.

    Attributes:
        centers: [N, 3] in world units.
        density: [N, 3, D + 1, C] three vectors of every rank.
        appearance: [N, 3, D + 1, C'].
    """

    def __init__(self, centers: Tensor, density: Tensor, appearance: Tensor) -> None:
        super().__init__()
        self.register_buffer("centers", centers.clone())
        self.density, self.appearance = nn.Parameter(density), nn.Parameter(appearance)

    @classmethod
    def random(cls, centers: Tensor, cells: int, density_rank: int, appearance_rank: int) -> "Scale":
        """Vectors of small random numbers."""
        shape = len(centers), 3, cells + 1
        draw = lambda rank: INITIAL * torch.randn(*shape, rank, device=centers.device)  # noqa: E731
        return cls(centers, draw(density_rank), draw(appearance_rank))

    @property
    def cells(self) -> int:
        """D."""
        return self.density.shape[2] - 1

    @torch.no_grad()
    def grow(self, cells: int) -> None:
        """Give the vectors `cells` cells; the parameters are new ones."""
        self.density = nn.Parameter(grown(self.density, cells))
        self.appearance = nn.Parameter(grown(self.appearance, cells))


def grown(lines: Tensor, cells: int) -> Tensor:
    """Vectors [N, 3, D + 1, C] with other nodes on the same length, interpolated linearly."""
    count, _, nodes, ranks = lines.shape
    first = lines.reshape(count * 3, nodes, ranks).transpose(1, 2)
    resized = F.interpolate(first, size=cells + 1, mode="linear", align_corners=True)
    return resized.transpose(1, 2).reshape(count, 3, cells + 1, ranks).contiguous()


def place_tensors(points: Tensor, spacing: float) -> Tensor:
    """[N, 3] one centre per occupied voxel of side `spacing`, in the middle of it; the lattice of voxels begins at the
    lowest coordinates of the points [P, 3]."""
    low = points.amin(0)
    keys = ((points - low) / spacing).floor().long()
    return low + (torch.unique(keys, dim=0) + 0.5) * spacing


def parameter_count(tensors: int, cells: int, ranks: int) -> int:
    """Numbers of `tensors` tensors: three vectors of D + 1 nodes for each rank, of density and appearance together."""
    return tensors * 3 * (cells + 1) * ranks


class CellMask(nn.Module):
    """Which cells of a lattice may hold something, one bit each.

    Attributes:
        bits: [ceil(X Y Z / 8)] uint8.
        low: [3] the lattice's lowest corner. cell: [] float64 side of a cell. size: [3] int64.
    """

    def __init__(self, bits: Tensor, low: Tensor, cell: Tensor, size: Tensor) -> None:
        super().__init__()
        self.register_buffer("bits", bits.clone())
        self.register_buffer("low", low.clone())
        self.register_buffer("cell", cell.clone())
        self.register_buffer("size", size.clone())

    @classmethod
    def of(cls, occupied: Tensor, low: Tensor, cell: float) -> "CellMask":
        """From [X, Y, Z] bool."""
        bits = torch.from_numpy(np.packbits(occupied.cpu().numpy())).to(low.device)
        size = torch.tensor(occupied.shape, device=low.device)
        return cls(bits, low, torch.tensor(cell, dtype=torch.float64, device=low.device), size)

    def occupied(self) -> Tensor:
        """[X, Y, Z] bool, in main memory."""
        shape = tuple(self.size.tolist())
        bits = np.unpackbits(self.bits.cpu().numpy(), count=math.prod(shape))
        return torch.from_numpy(bits.astype(bool)).view(shape)

    def overlapping(self, low: Tensor, cell: float, size: Sequence[int]) -> Tensor:
        """[X', Y', Z'] bool, in main memory: cells of another lattice, no larger than these, that an occupied one
        reaches into. Nothing outside is occupied."""
        own, ends = self.occupied(), []
        shift = ((low - self.low).double() / self.cell).tolist()
        for axis in range(3):
            first = torch.arange(size[axis], dtype=torch.float64) * (cell / float(self.cell)) + shift[axis]
            # Faces that coincide but for rounding do not overlap.
            reach = (first + 1e-4).floor().long(), (first + cell / float(self.cell) - 1e-4).floor().long()
            ends.append([(at.clamp(0, own.shape[axis] - 1), (at >= 0) & (at < own.shape[axis])) for at in reach])
        result = torch.zeros(tuple(size), dtype=torch.bool)
        for x, in_x in ends[0]:
            for y, in_y in ends[1]:
                for z, in_z in ends[2]:
                    inside = in_x[:, None, None] & in_y[:, None] & in_z
                    result |= own[x][:, y][:, :, z] & inside
        return result

    def box(self) -> Tensor:
        """[2, 3] around the occupied cells."""
        places = self.occupied().nonzero().to(self.low.device)
        corners = torch.stack([places.amin(0), places.amax(0) + 1])
        return lattice_box(self.low, float(self.cell), self.size.tolist())[0] + corners * float(self.cell)
