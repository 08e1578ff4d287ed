"""NeuS's other networks: the colour of the surface, and what is behind the region.

Symbols: N points, O colour logits, V numbers of an encoded direction, F features of the distance network.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfc_splat.fields.encodings import Positional
from nfc_splat.fields.mlp import MLP
from nfc_splat.fields.neus_config import Config
from nfc_splat.fields.sdf_network import HashFeatures, NormalizedLinear
from nfc_splat.rendering.march import alpha_from_density
from nfc_splat.rendering.occupancy import contract

VIEW_OCTAVES, POINT_OCTAVES = 4, 10
HEAD_WIDTH = 128


class ColorNetwork(nn.Module):
    """Colour logits from point, direction, gradient and features (NeuS, section 3.1; IDR's renderer), and from a hash
    grid of its own, so that learning to paint moves the surface less."""

    def __init__(self, config: Config, outputs: int, grid: HashFeatures | None) -> None:
        """outputs: O."""
        super().__init__()
        self.grid = grid
        self.views = Positional(3, config.view_octaves)
        self.spare = config.spare_inputs
        inputs = 6 + self.views.out_dim + config.features + self.spare
        inputs += 0 if grid is None else grid.out_dim - 3
        self.mlp = MLP(inputs, outputs, config.color_width, config.color_depth)
        if config.variant == "sdfstudio":
            for layer in self.mlp.layers:
                nn.init.kaiming_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.layers = None
        if config.weight_norm:
            self.layers = nn.ModuleList(
                NormalizedLinear(layer.weight.data, layer.bias.data) for layer in self.mlp.layers
            )
            self.mlp = None

    def forward(self, points: Tensor, directions: Tensor, gradients: Tensor, features: Tensor) -> Tensor:
        """[N, 3] local points, [N, 3] unit directions, [N, 3] gradients (not normalised), [N, F] -> [N, O]."""
        parts = [points, self.views(directions), gradients, features]
        if self.grid is not None:
            parts.append(self.grid(points)[:, 3:])
        x = F.pad(torch.cat(parts, 1), (0, self.spare))
        if self.mlp is not None:
            return self.mlp(x)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Background(nn.Module):
    """A radiance field behind the region.

    "contracted" (SDFStudio): of points contracted into a cube of half side 2, with two layers for the colour. "sphere"
    (NeRF++, Zhang et al. 2020, section 4): of (x / |x|, 1 / |x|), with NeRF's head.
    """

    def __init__(self, kind: Literal["contracted", "sphere"], config: Config, outputs: int) -> None:
        super().__init__()
        self.kind = kind
        self.points, self.views = (
            Positional(3 if kind == "contracted" else 4, POINT_OCTAVES),
            Positional(3, VIEW_OCTAVES),
        )
        width, depth = config.background_width, config.background_depth
        # Of eight layers, SDFStudio's fifth sees the point again, the original's (like NeRF's) sixth.
        joins = depth // 2 - (kind == "contracted")
        self.trunk = MLP(self.points.out_dim, None, width, depth, skips=(joins,) if depth > 3 else ())
        self.density = nn.Linear(width, 1)
        if kind == "contracted":
            self.feature = nn.Identity()
            self.color = MLP(width + self.views.out_dim, outputs, HEAD_WIDTH, 2)
        else:
            self.feature = nn.Linear(width, width)
            self.color = MLP(width + self.views.out_dim, outputs, width // 2, 1)

    def forward(self, points: Tensor, directions: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3] local points, [N, 3] unit directions, [N] local widths -> opacities [N] and colour logits [N, O]."""
        h = self.trunk(self.points(self._bounded(points)))
        alpha = alpha_from_density(F.softplus(self.density(h)[:, 0]), widths)
        return alpha, self.color(torch.cat([self.feature(h), self.views(directions)], 1))

    def _bounded(self, points: Tensor) -> Tensor:
        if self.kind == "contracted":
            return contract(points, "inf", 1.0)
        length = points.norm(dim=-1, keepdim=True).clamp(1, 1e10)
        return torch.cat([points / length, 1 / length], 1)
