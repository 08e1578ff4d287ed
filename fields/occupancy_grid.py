"""Which cells of a grid hold something: Instant-NGP's occupancy grid (Mueller et al. 2022, appendix E.2).

The grid remembers, for every cell of the unit cube, the largest optical thickness (density times the length of a step)
that it saw there lately. From time to time all values decay, and random points in some cells are asked for their
density again. Cells above a threshold are occupied; rays are marched through these alone.

Symbols: G cells along an axis, N points.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nfc_splat.errors import UserError

ROWS_AT_ONCE = 2**17  # points asked for their density together


class OccupancyGrid(nn.Module):
    """Everything that must survive a resume is a buffer; random numbers come from torch's global generator.

    Args:
        size: G.
        decay: what the thickness is multiplied with at each update (0.95 in the paper).
        threshold: a cell is occupied if its thickness is above this or above the mean of all (0.01 in the paper).

    Attributes:
        thickness: [G, G, G] remembered optical thickness of a step.
        occupied: [G, G, G] bool; everything at first.
    """

    thickness: Tensor
    occupied: Tensor

    def __init__(self, size: int, decay: float, threshold: float) -> None:
        super().__init__()
        self.decay, self.threshold = decay, threshold
        self._share: float | None = None
        self.register_buffer("thickness", torch.zeros(size, size, size))
        self.register_buffer("occupied", torch.ones(size, size, size, dtype=torch.bool))

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
    def update(self, thickness_at: Callable[[Tensor], Tensor], *, everywhere: bool) -> None:
        """Let all values decay, look at some cells again, and decide anew which are occupied.

        Args:
            thickness_at: the scene: [N, 3] points of the unit cube -> [N] optical thickness of a step there.
            everywhere: look at every cell; otherwise at half as many as there are, half of these anywhere and half
                where something is.

        Raises:
            UserError: no cell is occupied; the message says how thick the scene is.
        """
        cells = self._cells(everywhere)
        values = torch.cat([thickness_at(self._points_in(part)) for part in cells.split(ROWS_AT_ONCE)])
        # The largest value of a cell that was drawn twice: a maximum does not depend on the order.
        memory = self.thickness.view(-1).mul_(self.decay)
        memory.scatter_reduce_(0, cells, values.to(memory), "amax")
        self._share = None
        torch.gt(self.thickness, min(self.threshold, float(self.thickness.mean())), out=self.occupied)
        if not self.occupied.any():
            low, high = self.thickness.aminmax()
            raise UserError(
                f"the scene is empty: the optical thickness of a step lies between {low:.3g} and {high:.3g} in all "
                f"{self.size}^3 cells, above none of them {self.threshold:g} or the mean; check the scene's poses with "
                "nfc_splat.doctor, or lower --lr"
            )

    def _cells(self, everywhere: bool) -> Tensor:
        """[N] int64 flat numbers of the cells to look at."""
        count, device = self.occupied.numel(), self.occupied.device
        if everywhere:
            return torch.arange(count, device=device)
        anywhere = torch.randint(count, (count // 4,), device=device)
        taken = self.occupied.view(-1).nonzero()[:, 0]
        return torch.cat([anywhere, taken[torch.randint(len(taken), (count // 4,), device=device)]])

    def _points_in(self, cells: Tensor) -> Tensor:
        """[N, 3] a random point of each cell, in the unit cube."""
        places = torch.stack(torch.unravel_index(cells, self.occupied.shape), -1)
        return (places + torch.rand(places.shape, device=cells.device)) / self.size

    def centers(self) -> Tensor:
        """[N, 3] middles of the occupied cells, in the unit cube."""
        return (self.occupied.nonzero() + 0.5) / self.size
