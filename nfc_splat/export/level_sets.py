"""The surface of a model that has a level set (`nfc_splat.rendering.level_set`), found coarse to fine.

The field is asked first at one point of every `SPACING`^3 cells. A block of the lattice is then looked at in full if
one of its points may have the surface near: where the level is no farther from the value than the field changes, at the
slope found between the points, over `REACH` times the distance to the farthest place that the point stands for. For a
signed distance that is |f| below twice that distance, and the surface is found as long as the slope does not more than
double between points. For a density it is sampling: a part of the surface thinner than the spacing can be missed, if no
part found elsewhere leads to it. `extract_surface` follows the surface out of the blocks chosen here.

Symbols: N points, n blocks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from nfc_splat.errors import UserError
from nfc_splat.export.marching_cubes import BLOCK, NODES, Lattice, extract_surface
from nfc_splat.rendering.level_set import LevelSet

SPACING = 4  # cells between coarse points
REACH = 2.0
HALF_DIAGONAL = math.sqrt(3) / 2  # of the cube that a point stands for, in spacings
POINTS = BLOCK // SPACING  # coarse points along a block's side


@dataclass
class LevelSetSampler:
    """Values of a level set's field on a lattice, and their range so far.

    Attributes:
        surface: the field.
        lattice: where.
        device: of the points that the field is asked at.
        low, high: smallest and largest value.
    """

    surface: LevelSet
    lattice: Lattice
    device: torch.device
    low: float = field(default=math.inf)
    high: float = field(default=-math.inf)

    def __call__(self, blocks: np.ndarray) -> np.ndarray:
        """[n, NODES, NODES, NODES] values at the nodes of blocks [n, 3]."""
        return self.values(self.lattice.nodes(blocks)).reshape(len(blocks), NODES, NODES, NODES)

    def values(self, points: np.ndarray) -> np.ndarray:
        """[N] float32 at points [N, 3]; a `UserError` for values that are no numbers."""
        with torch.no_grad():
            asked = torch.from_numpy(points).to(self.device, torch.float32)
            values = self.surface.values(asked).float().cpu().numpy()
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise UserError(
                f"the field is not finite at {bad} of {len(points)} points: the run has diverged; export an earlier "
                "checkpoint with --checkpoint STEP"
            )
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        return values

    def near_surface(self) -> np.ndarray:
        """[n, 3] the blocks that the surface may cross, by the coarse points."""
        found = []
        for layer in range(self.lattice.blocks[0]):
            near = self._layer(layer)
            blocks = near.reshape(POINTS, near.shape[1] // POINTS, POINTS, near.shape[2] // POINTS, POINTS)
            rest = np.argwhere(blocks.any((0, 2, 4)))
            found.append(np.concatenate([np.full((len(rest), 1), layer), rest], 1))
        return np.concatenate(found)

    def _layer(self, layer: int) -> np.ndarray:
        """[POINTS, .., ..] which coarse points of one layer of blocks may have the surface near. The points around
        the layer, outside the lattice too, are asked for the slope alone."""
        _, *wide = self.lattice.blocks * POINTS
        axes = (layer * POINTS + np.arange(-1, POINTS + 1), *(np.arange(-1, count + 1) for count in wide))
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        # Outside the lattice the field need not mean anything: repeat the last points there.
        places = np.minimum((points + 0.5).clip(0) * SPACING, self.lattice.cells)
        parts = np.array_split(places, -(-len(places) // 2**20))
        values = np.concatenate([self.values(self.lattice.low + self.lattice.cell * part) for part in parts])
        values = values.reshape([len(axis) for axis in axes]).astype(np.float64)
        middle = values[1:-1, 1:-1, 1:-1]
        slope = np.zeros_like(middle)  # the squared change from a point to the next
        for axis in range(3):
            inner = tuple(slice(None) if other == axis else slice(1, -1) for other in range(3))
            change = np.abs(np.diff(values, axis=axis))[inner]
            ahead, behind = (change.take(range(start, start + middle.shape[axis]), axis) for start in (1, 0))
            slope += np.maximum(ahead, behind) ** 2
        return np.abs(middle - self.surface.level) <= REACH * HALF_DIAGONAL * np.sqrt(slope)


def level_set_mesh(
    surface: LevelSet,
    lattice: Lattice,
    device: torch.device,
    advance: Callable[[int, int], None] = lambda done, known: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] float64 and triangles [T, 3] of the level set in the lattice.

    Raises:
        UserError: nothing is at the level, or the field is not finite.
    """
    sampler = LevelSetSampler(surface, lattice, device)
    vertices, triangles = extract_surface(lattice, sampler, surface.level, sampler.near_surface(), advance)
    if not len(triangles):
        raise UserError(_emptiness(surface.level, sampler.low, sampler.high))
    return vertices, triangles


def _emptiness(level: float, low: float, high: float) -> str:
    what = f"--level {level:g}: nothing has this value, the field lies between {low:.6g} and {high:.6g} in the box"
    if not low < high:
        return f"{what}; it is the same everywhere: train longer, or give --bounds that hold the scene"
    if level == 0:  # of signed distances: another level would be another surface
        return f"{what}; give --bounds that hold the surface, or smaller voxels, or train longer"
    return f"{what}; try --level {(low + high) / 2:.3g}, or --from depth"
