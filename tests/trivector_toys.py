"""Local tensors in a small box, as the tests of the kernels and of Strivec need them."""

import torch

from nfc_splat.rendering.tensor_cells import TensorCells, find_cells, lattice_size

HALVES, SPACINGS, CELLS, RANKS = (0.3, 0.15), (0.4, 0.2), (5, 3), (11, 8)
SIDE = 1.0


def lattice_of_tensors(spacing: float, drop: float = 0.2, seed: int = 3) -> torch.Tensor:
    """[N, 3] centres on a lattice in the box, some left out and all a little off, so that no two are equally near."""
    generator = torch.Generator().manual_seed(seed)
    middle = (torch.arange(round(SIDE / spacing)) + 0.5) * spacing
    centers = torch.cartesian_prod(middle, middle, middle)
    kept = torch.rand(len(centers), generator=generator) >= drop
    return (centers + 0.02 * spacing * torch.randn(centers.shape, generator=generator))[kept]


def toy_cells(nearest: int = 3, cell: float = 0.12, drop: float = 0.2) -> TensorCells:
    """Two scales of tensors and their cells."""
    centers = [lattice_of_tensors(spacing, drop) for spacing in SPACINGS]
    box = torch.tensor([[0.0] * 3, [SIDE] * 3])
    return find_cells(box[0], cell, lattice_size(box, cell), centers, HALVES, nearest, unit=0.7)


def toy_lines(cells: TensorCells, seed: int = 0) -> list[torch.Tensor]:
    """Random vectors for each scale."""
    generator = torch.Generator().manual_seed(seed)
    shapes = zip(cells.centers, CELLS, RANKS, strict=True)
    return [torch.randn(len(c), 3, d + 1, r, generator=generator) for c, d, r in shapes]


def toy_points(count: int, seed: int = 1) -> torch.Tensor:
    """Points in the box and a little outside of it."""
    return 1.2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.1


def converted(cells: TensorCells, dtype: torch.dtype) -> TensorCells:
    """The same with numbers of another type."""
    centers = tuple(center.to(dtype) for center in cells.centers)
    low = cells.low.to(dtype)
    return TensorCells(low, cells.cell, cells.rows, cells.neighbors, centers, cells.halves, cells.unit)
