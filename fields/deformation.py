"""How Gaussians move: a HexPlane's features, decoded by small networks into changes of the Gaussians' parameters.

Changes are added to the parameters before activation: logarithms of the standard deviations, quaternions of any length,
logits of the opacities. Source: Wu et al. 2024 (4DGS, arXiv 2310.08528), section 4.2, and its released code, which the
paper describes incompletely.

Symbols: N Gaussians, F features, W width, H heads, K numbers that a head changes per Gaussian.
"""

from collections.abc import Mapping
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nfc_splat.fields.hexplane import HexPlane
from nfc_splat.rendering.hexplane import Backend

Deformable = Literal["means", "scales", "quats", "opacities", "colors"]


class Deformation(nn.Module):
    """Changes of Gaussians with time.

    A linear map from the features to W numbers (the published depths 0 and 1 both mean that), then per head ReLU,
    linear to W, ReLU, linear to K. Neither position nor time reaches the networks but through the planes, and no time
    is the canonical one.

    Attributes:
        planes: the features.
        trunk: the first linear map.
        hidden: the heads' first linear maps, by what they change.
        heads: and their last.
    """

    def __init__(self, planes: HexPlane, width: int, sizes: Mapping[str, int]):
        """Args:
        planes: F = planes.out_dim.
        width: W.
        sizes: K by what is changed, in the order of `Deformable`.
        """
        super().__init__()
        self.planes = planes
        self.trunk = nn.Linear(planes.out_dim, width)
        self.hidden = nn.ModuleDict({name: nn.Linear(width, width) for name in sizes})
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def initialise(self, zero_heads: bool) -> None:
        """Draw the weights.

        4DGS's: Xavier's uniform weights and torch's default biases, in the heads too, so that Gaussians jump by random
        offsets of up to about 0.2 when the deformation is switched on. With `zero_heads` they start where they were.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        if zero_heads:
            for layer in self.heads.values():
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a `state_dict`, taking every size from it."""
        planes = {name.removeprefix("planes."): value for name, value in tensors.items() if name.startswith("planes.")}
        # Always in the same order, on which the optimiser's state depends; a checkpoint's tensors come in another.
        biases = {name: tensors.get(f"heads.{name}.bias") for name in get_args(Deformable)}
        sizes = {name: len(bias) for name, bias in biases.items() if bias is not None}
        deformation = cls(HexPlane.from_tensors(planes), len(tensors["trunk.bias"]), sizes)
        deformation.load_state_dict(dict(tensors))
        return deformation

    def forward(self, means: Tensor, time: Tensor, backend: Backend = "auto") -> dict[str, Tensor]:
        """Changes [N, K] of Gaussians with canonical `means` [N, 3] at `time` [], by what they are added to."""
        hidden = self.trunk(self.planes(means, time, backend)).relu()
        names, width = list(self.heads), hidden.shape[1]
        # One product for all heads: they read the same input.
        weight = torch.cat([self.hidden[name].weight for name in names])
        bias = torch.cat([self.hidden[name].bias for name in names])
        parts = linear(hidden, weight, bias).relu().split(width, dim=1)
        return {name: self.heads[name](part) for name, part in zip(names, parts, strict=True)}

    def network_parameters(self) -> list[nn.Parameter]:
        """Everything but the planes."""
        return [value for name, value in self.named_parameters() if not name.startswith("planes.")]
