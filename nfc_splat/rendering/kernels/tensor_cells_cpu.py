"""Which cells of a lattice boxes reach into, and which boxes are nearest to each cell, compiled by numba.

Work is shared out by planes of cells: a plane looks at every box that reaches into it, so nobody writes what another
one does, and the cost is that of the cells that are covered, not of those that are there.

Symbols: N boxes of half side `half`, X, Y, Z cells, A active cells, L scales, K nearest.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import prange
from torch import Tensor

from nfc_splat.rendering.kernels.numba_tools import inlined, parallel_kernel
from nfc_splat.rendering.kernels.threads import numba_threads


@inlined
def _reached(center, half, low, cell, count):
    """First and last cell along an axis whose nearest face is less than `half` away; none if last < first."""
    first = int(np.floor((center - half - low) / cell))
    last = int(np.ceil((center + half - low) / cell)) - 1
    return max(first, 0), min(last, count - 1)


@parallel_kernel
def _cover(low, cell, centers, half, covered):
    """Set the cells of covered [X, Y, Z] that boxes reach into."""
    for x in prange(covered.shape[0]):
        for n in range(len(centers)):
            first, last = _reached(centers[n, 0], half, low[0], cell, covered.shape[0])
            if first <= x <= last:
                front, back = _reached(centers[n, 1], half, low[1], cell, covered.shape[1])
                bottom, top = _reached(centers[n, 2], half, low[2], cell, covered.shape[2])
                for y in range(front, back + 1):
                    for z in range(bottom, top + 1):
                        covered[x, y, z] = True


@inlined
def _square(low, cell, x, y, z, center):
    """Squared distance of a cell's middle from a centre."""
    dx = low[0] + (x + 0.5) * cell - center[0]
    dy = low[1] + (y + 0.5) * cell - center[1]
    dz = low[2] + (z + 0.5) * cell - center[2]
    return dx * dx + dy * dy + dz * dz


@parallel_kernel
def _nearest(low, cell, rows, centers, half, level, neighbors):
    """Fill neighbors[:, level], which is -1 all over."""
    most = neighbors.shape[2]
    for x in prange(rows.shape[0]):
        for n in range(len(centers)):
            first, last = _reached(centers[n, 0], half, low[0], cell, rows.shape[0])
            if not first <= x <= last:
                continue
            front, back = _reached(centers[n, 1], half, low[1], cell, rows.shape[1])
            bottom, top = _reached(centers[n, 2], half, low[2], cell, rows.shape[2])
            for y in range(front, back + 1):
                for z in range(bottom, top + 1):
                    row = rows[x, y, z]
                    if row < 0:
                        continue
                    own, place = _square(low, cell, x, y, z, centers[n]), most
                    while place > 0:
                        other = neighbors[row, level, place - 1]
                        if other >= 0 and _square(low, cell, x, y, z, centers[other]) <= own:
                            break
                        place -= 1
                    for k in range(most - 1, place, -1):
                        neighbors[row, level, k] = neighbors[row, level, k - 1]
                    if place < most:
                        neighbors[row, level, place] = n


def cover(low: np.ndarray, cell: float, centers: np.ndarray, half: float, active: Tensor) -> None:
    """Clear the cells of `active` [X, Y, Z] bool that no box reaches into."""
    numba_threads()
    covered = np.zeros(tuple(active.shape), np.bool_)
    _cover(low.astype(np.float64), cell, centers.astype(np.float64), half, covered)
    active &= torch.from_numpy(covered)


def neighbors_of(
    low: np.ndarray, cell: float, rows: Tensor, centers: Sequence[Tensor], halves: Sequence[float], nearest: int
) -> Tensor:
    """[A, L, K] int16, see `nfc_splat.rendering.tensor_cells.TensorCells`."""
    numba_threads()
    active = int(rows.max()) + 1
    neighbors = np.full((active, len(centers), nearest), -1, np.int16)
    for level, (center, half) in enumerate(zip(centers, halves, strict=True)):
        _nearest(low.astype(np.float64), cell, rows.numpy(), center.double().numpy(), half, level, neighbors)
    return torch.from_numpy(neighbors)
