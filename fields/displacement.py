"""How points of a scene that moves are brought to where its static model knows them (D-NeRF, Pumarola et al. 2021).

A network maps a point seen at time t to the way to its place at time 0, the canonical one: x -> x + dx(x, t). It is a
warp backwards; 4DGS's goes from the canonical place to that at time t. Directions are not warped.

Symbols: M samples of R rays, E and T numbers of an encoded point and time.
"""

import torch
from torch import Tensor, nn

from nfc_splat.fields.encodings import Positional
from nfc_splat.fields.mlp import MLP


class Displacement(nn.Module):
    """dx(x, t), exactly 0 at time 0.

    As released: point and time enter side by side; after half of the layers the point joins again, in front and
    without the time. The released code encodes time with as many octaves as points, 10; the paper says 4.

    Attributes:
        points, times: the encodings.
        network: ReLU layers, and a linear one to dx.
    """

    def __init__(
        self, width: int, depth: int, octaves: int, time_octaves: int, *, bf16: bool = False, zero_start: bool = False
    ) -> None:
        """Args:
        width, depth: of the hidden layers.
        octaves, time_octaves: frequencies of the encodings.
        bf16: multiply in bfloat16.
        zero_start: begin without displacement; otherwise with torch's random one, as released.
        """
        super().__init__()
        self.points, self.times = Positional(3, octaves), Positional(1, time_octaves)
        skips = (depth // 2,) if depth > 2 else ()
        inputs = self.points.out_dim + self.times.out_dim
        self.network = MLP(inputs, 3, width, depth, skips=skips, skip_dim=self.points.out_dim, bf16=bf16)
        if zero_start:
            nn.init.zeros_(self.network.layers[-1].weight)
            nn.init.zeros_(self.network.layers[-1].bias)

    def forward(self, points: Tensor, times: Tensor, ray: Tensor) -> Tensor:
        """dx [M, 3] of points [M, 3] at the times [R] of their rays, `ray` [M] int64, in the units of the points."""
        encoded = self.times(times[:, None]).index_select(0, ray)
        moved = self.network(torch.cat([self.points(points), encoded], 1))
        # Nothing moves at time 0 and nothing is learned there: this is what makes that moment the canonical one.
        return torch.where((times != 0).index_select(0, ray)[:, None], moved, 0.0)
