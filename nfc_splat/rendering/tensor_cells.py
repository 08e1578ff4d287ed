"""Which local tensors a point asks: a lattice of cells, each with the tensors nearest to its middle.

Local tensors are boxes of one size per scale, anywhere in space; a point lies in several of each scale. What a point
asks is decided per cell, once, when the cells are laid out (Strivec, Gao et al. 2023, section 3.2).

Symbols: L scales, N tensors of a scale, K nearest ones, A active cells, X, Y, Z cells along the axes, M points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nfc_splat.errors import UserError

MOST_CELLS = 2**28  # of a lattice: four bytes each, and some 25 while it is looked through
MOST_TENSORS = 2**15 - 1  # of a scale: their numbers are kept in two bytes


@dataclass(frozen=True, eq=False)
class TensorCells:
    """A lattice of cells and the tensors that belong to them.

    Attributes:
        low: [3] the lattice's lowest corner.
        cell: side of a cell, a length.
        rows: [X, Y, Z] int32 row of each active cell, -1 for the others.
        neighbors: [A, L, K] int16 tensors of each active cell, nearest first, -1 where there are fewer than K.
        centers: L times [N, 3].
        halves: L half sides.
        unit: length in which weights are inverse distances; their sum counts as 1 at least.
    """

    low: Tensor
    cell: float
    rows: Tensor
    neighbors: Tensor
    centers: tuple[Tensor, ...]
    halves: tuple[float, ...]
    unit: float = 1.0

    @property
    def size(self) -> tuple[int, int, int]:
        """X, Y, Z."""
        return tuple(self.rows.shape)

    @cached_property
    def box(self) -> Tensor:
        """[2, 3] lowest and highest corner."""
        return lattice_box(self.low, self.cell, self.size)

    @cached_property
    def occupied(self) -> Tensor:
        """[X, Y, Z] bool, which cells are active."""
        return self.rows >= 0

    @cached_property
    def per_length(self) -> Tensor:
        """[3] cells per length along each axis, rounded as `march_occupancy` does."""
        span = self.box[1].double() - self.box[0].double()
        return (torch.tensor(self.size, device=span.device).double() / span).to(self.low.dtype)

    def rows_of(self, points: Tensor) -> Tensor:
        """[M] int32: rows of the active cells that points [M, 3] lie in, -1 outside of them."""
        if points.device.type == "cpu" and points.dtype == self.low.dtype == torch.float32:
            from nfc_splat.rendering.kernels.trivector_rays_cpu import rows_cpu

            return rows_cpu(self, points)
        place = (points - self.low) * self.per_length
        size = torch.tensor(self.size, device=points.device)
        inside = ((place >= 0) & (place < size)).all(-1)  # False for NaN
        x, y, z = torch.where(inside[:, None], place, torch.zeros_like(place)).long().unbind(-1)
        return torch.where(inside, self.rows[x, y, z], torch.full_like(self.rows[x, y, z], -1))

    def active(self) -> Tensor:
        """[A, 3] int64 places of the active cells in the lattice, by row."""
        return self.occupied.nonzero()

    def middles(self, places: Tensor) -> Tensor:
        """[*, 3] middles of the cells at `places` [*, 3]."""
        return self.low + (places + 0.5) * self.cell

    def to(self, device: torch.device | str) -> "TensorCells":
        """The same on another device."""
        low, rows, neighbors = (tensor.to(device) for tensor in (self.low, self.rows, self.neighbors))
        centers = tuple(center.to(device) for center in self.centers)
        return replace(self, low=low, rows=rows, neighbors=neighbors, centers=centers)


def lattice_box(low: Tensor, cell: float, size: Sequence[int]) -> Tensor:
    """[2, 3] the corners of a lattice."""
    return torch.stack([low, low + torch.tensor(size, device=low.device) * cell])


def lattice_size(box: Tensor, cell: float) -> tuple[int, int, int]:
    """How many cells of side `cell` it takes along each axis to fill a box [2, 3]; a rounding error takes none.

    Raises:
        UserError: too many for any memory.
    """
    x, y, z = (max(1, math.ceil(span / cell - 1e-4)) for span in (box[1].double() - box[0].double()).tolist())
    if x * y * z > MOST_CELLS:
        raise UserError(
            f"the lattice of cells would have {x} x {y} x {z} entries of side {cell:.3g}, more than {MOST_CELLS}: "
            "choose a smaller region, or fewer or larger cells"
        )
    return x, y, z


def find_cells(
    low: Tensor,  # [3]
    cell: float,
    size: tuple[int, int, int],
    centers: Sequence[Tensor],  # [N, 3] each
    halves: Sequence[float],
    nearest: int,
    keep: Tensor | None = None,  # [X, Y, Z] bool
    unit: float = 1.0,
) -> TensorCells:
    """Lay out a lattice from `low` on: a cell is active if tensors of every scale reach into it, and `keep` allows it.

    Each active cell gets, per scale, the `nearest` (K) tensors whose centres are nearest to its middle, among those
    that reach into it. Of two equally near ones the lower number comes first.

    Raises:
        ValueError: a scale has no tensors, or too many.
    """
    from nfc_splat.rendering.kernels.tensor_cells_cpu import cover, neighbors_of

    for center in centers:
        if not 1 <= len(center) <= MOST_TENSORS:
            raise ValueError(f"a scale must have 1 to {MOST_TENSORS} tensors; got {len(center)}")
    corner, host = low.detach().cpu().float(), tuple(center.detach().cpu().float().contiguous() for center in centers)
    active = torch.ones(size, dtype=torch.bool) if keep is None else keep.cpu().clone()
    for center, half in zip(host, halves, strict=True):
        cover(corner.numpy(), cell, center.numpy(), half, active)
    rows = torch.full(size, -1, dtype=torch.int32)
    rows[active] = torch.arange(int(active.sum()), dtype=torch.int32)
    neighbors = neighbors_of(corner.numpy(), cell, rows, host, halves, nearest)
    return TensorCells(corner, cell, rows, neighbors, host, tuple(halves), unit).to(low.device)
