"""Which cells of a grid the surface of a signed distance field may pass through, so that rays are sampled there alone.

The grid remembers a distance for every cell. An update asks again in all cells near the surface, and in turn in some of
the others. As distances are continuous, nothing is drawn at random. Lengths are in half sides of the grid.

Symbols: G cells along an axis, N points, M samples of R rays.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfc_splat.errors import UserError
from nfc_splat.rendering.packed import exclusive_sum

ROWS_AT_ONCE = 2**16
LEAST_LIGHT = -7.0  # logarithm of the share of a ray's light below which samples are hidden
TURNS = 16  # updates in which every cell is looked at once
MARGIN = 2.0  # cells: how much farther than what is occupied an update looks


class DistanceGrid(nn.Module):
    """The memory over [-1, 1]^3; everything that must survive a resume is a buffer.

    Attributes:
        distances: [G, G, G] as last seen at the cells' middles; 0 at first.
        occupied: [G, G, G] bool; everything at first.
        turn: [] int64, which part of the other cells comes next.
    """

    distances: Tensor
    occupied: Tensor
    turn: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self._share: float | None = None
        self.register_buffer("distances", torch.zeros(size, size, size))
        self.register_buffer("occupied", torch.ones(size, size, size, dtype=torch.bool))
        self.register_buffer("turn", torch.tensor(0))

    @property
    def size(self) -> int:
        return len(self.occupied)

    @property
    def share(self) -> float:
        """Share of the cells that is occupied, as of the last update."""
        if self._share is None:
            self._share = float(self.occupied.float().mean())
        return self._share

    @torch.no_grad()
    def update(self, distance: Callable[[Tensor], Tensor], reach: float) -> None:
        """Look at some cells again, and take for occupied what may be nearer to the surface than `reach`.

        Args:
            distance: the field: [N, 3] points of [-1, 1]^3 -> [N].
            reach: length.

        Raises:
            UserError: the field has no surface; the message says between which distances it lies.
        """
        cell = 2 / self.size
        reach += 0.5 * math.sqrt(3) * cell
        memory = self.distances.view(-1)
        wanted = memory.abs() < reach + MARGIN * cell
        wanted[int(self.turn) % TURNS :: TURNS] = True
        cells = wanted.nonzero()[:, 0]
        memory[cells] = torch.cat([distance(self.centers(part)) for part in cells.split(ROWS_AT_ONCE)]).to(memory)
        self.turn += 1
        self._share = None
        torch.lt(self.distances.abs(), reach, out=self.occupied)
        if not self.occupied.any():
            low, high = self.distances.aminmax()
            raise UserError(
                f"the surface is gone: the distances lie between {low:.3g} and {high:.3g} half sides of the region in "
                f"all {self.size}^3 cells; check the scene's poses with nfc_splat.doctor, or lower --lr"
            )

    @torch.no_grad()
    def in_sight(self, points: Tensor, offsets: Tensor, s: float) -> Tensor:
        """Which samples [M] bool along rays some light may reach, by the remembered distances.

        The light that goes on falls as Phi = sigmoid(s f) does. Distances between the cells' middles are interpolated,
        and taken for half a cell larger than they are: what is thinner than the grid sees hides nothing.

        Args:
            points: [M, 3] in [-1, 1]^3, ray by ray, nearest first. offsets: [R + 1] which are a ray's.
            s: sharpness.
        """
        at = points.flip(-1).view(1, 1, 1, -1, 3)
        distance = F.grid_sample(self.distances[None, None], at, padding_mode="border", align_corners=False).view(-1)
        light = F.logsigmoid(s * (distance + 1 / self.size))
        fall = F.pad(light.diff(), (0, min(1, len(light)))).clamp_max(0)  # the last one's is not asked for
        return exclusive_sum(fall, offsets) > LEAST_LIGHT

    def centers(self, cells: Tensor) -> Tensor:
        """[N, 3] middles of cells [N] (flat numbers) in [-1, 1]^3."""
        places = torch.stack(torch.unravel_index(cells, self.occupied.shape), -1)
        return (places + 0.5) * (2 / self.size) - 1
