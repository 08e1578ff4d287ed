"""DVGO's occupancy mask: which nodes of a box rays may meet something at. It only ever loses nodes.

Symbols: X, Y, Z nodes along the axes, M points. `box` is [2, 3]; the outermost nodes lie on its faces. The nearest node
answers for a point.
"""

import torch
from torch import Tensor, nn

from nfc_splat.fields.voxel_grid import Size, grid_nodes


class OccupancyMask(nn.Module):
    """Occupied nodes of a box.

    Attributes:
        occupied: [X, Y, Z] bool.
        box: [2, 3].
    """

    def __init__(self, occupied: Tensor, box: Tensor) -> None:
        super().__init__()
        self.register_buffer("occupied", occupied.clone())
        self.register_buffer("box", box.clone())

    @classmethod
    def full(cls, box: Tensor, size: Size) -> "OccupancyMask":
        """Every node is occupied."""
        return cls(torch.ones(size, dtype=torch.bool, device=box.device), box)

    @property
    def size(self) -> Size:
        """X, Y, Z."""
        return tuple(self.occupied.shape)

    @property
    def share(self) -> float:
        """Occupied nodes among all."""
        return float(self.occupied.float().mean())

    def at(self, points: Tensor) -> Tensor:
        """points [..., 3] -> [...] whether the nearest node is occupied; False outside the box."""
        last = torch.tensor(self.size, device=points.device) - 1
        node = ((points - self.box[0]) * (last / (self.box[1] - self.box[0]))).round().long()
        inside = ((node >= 0) & (node <= last)).all(-1)
        node = node.clamp_min(0).minimum(last)
        return self.occupied[node.unbind(-1)] & inside

    def resampled(self, box: Tensor, size: Size) -> "OccupancyMask":
        """The same occupancy at the nodes of another box or size."""
        return OccupancyMask(self.at(grid_nodes(box, size)), box)

    def prune(self, keep: Tensor) -> None:
        """Only nodes that are in `keep` [X, Y, Z] bool too stay occupied."""
        self.occupied &= keep
