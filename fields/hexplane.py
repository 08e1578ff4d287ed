"""HexPlane as a module: planes over space and time, how they start, and what keeps them smooth.

Symbols: L levels, R nodes along an axis of space and T along time, C channels, M points. See
`nfc_splat.rendering.hexplane` for the layout of the planes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from nfc_splat.rendering.hexplane import Backend, interpolate_hexplane

Smoothness = Literal["published", "total-variation"]

SPATIAL_START = (0.1, 0.5)  # spatial planes start uniformly between these, temporal ones at 1 (4DGS, K-Planes)
THINNEST = 1e-3  # of the box, relative to its longest side: points in one plane have no box of their own


class HexPlane(nn.Module):
    """Features of points in space and time.

    Attributes:
        spatial: L tensors [3, R, R, C].
        temporal: L tensors [3, T, R, C].
        low, high: [4] corners of the box (x, y, z, t) that the planes span.
    """

    def __init__(self, low: Tensor, high: Tensor, spatial: Sequence[Tensor], temporal: Sequence[Tensor]):
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.spatial = nn.ParameterList(spatial)
        self.temporal = nn.ParameterList(temporal)

    @classmethod
    def initialise(
        cls,
        points: Tensor,  # [N, 3]
        earliest: float,
        *,
        channels: int,
        nodes: Sequence[int],
        rows: int,
    ) -> Self:
        """Random planes over the box of `points` and the times from `earliest` to 1.

        4DGS spans -1 to 1 although its times are 0 to 1, so that only one half of every time plane is ever read:
        `earliest` is -1 for that and 0 for the sane thing. Its axes also run backwards, which nothing can tell: planes
        start at random.

        Args:
            points: what the box is made of. (4DGS's configured bounds are overwritten by this box, too.)
            earliest: the time of the first row.
            channels, nodes, rows: C, R of each level, and T of all: levels differ in space alone.
        """
        low, high = points.amin(0), points.amax(0)
        margin = (0.5 * (THINNEST * (high - low).amax() - (high - low))).clamp_min(0)
        ends = points.new_tensor([earliest, 1.0])
        low, high = torch.cat([low - margin, ends[:1]]), torch.cat([high + margin, ends[1:]])
        new = dict(dtype=points.dtype, device=points.device)
        spatial = [torch.empty(3, count, count, channels, **new).uniform_(*SPATIAL_START) for count in nodes]
        temporal = [torch.ones(3, rows, count, channels, **new) for count in nodes]
        return cls(low, high, spatial, temporal)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from a `state_dict`, taking every size from it."""
        count = sum(name.startswith("spatial.") for name in tensors)
        spatial, temporal = ([tensors[f"{kind}.{i}"] for i in range(count)] for kind in ("spatial", "temporal"))
        return cls(tensors["low"], tensors["high"], spatial, temporal)

    @property
    def out_dim(self) -> int:
        """Features of a point, L * C."""
        return len(self.spatial) * self.spatial[0].shape[-1]

    def forward(self, points: Tensor, time: Tensor, backend: Backend = "auto") -> Tensor:
        """Features [M, L * C] of points [M, 3] at `time` []."""
        levels = list(zip(self.spatial, self.temporal, strict=True))
        return interpolate_hexplane(levels, points, time, self.low, self.high, backend)

    def space_roughness(self, kind: Smoothness) -> Tensor:
        """How rough the spatial planes are, summed over planes and levels.

        "published" is the mean square of second differences along a plane's rows alone, as 4DGS's code has it: y is
        smoothed in (x, y) and z in (x, z) and (y, z), x never. "total-variation" is what its paper names: the mean
        square of first differences along both axes.
        """
        if kind == "published":
            return _sum(3 * _bend(plane) for plane in self.spatial)
        return _sum(
            3 * (plane.diff(dim=1).square().mean() + plane.diff(dim=2).square().mean()) for plane in self.spatial
        )

    def time_roughness(self) -> Tensor:
        """The mean square of the temporal planes' second differences along time, summed over planes and levels."""
        return _sum(3 * _bend(plane) for plane in self.temporal)

    def time_dependence(self) -> Tensor:
        """The mean distance of the temporal planes from 1, which means no motion, summed over planes and levels."""
        return _sum(3 * (1 - plane).abs().mean() for plane in self.temporal)


def _bend(planes: Tensor) -> Tensor:
    """Mean square of the second differences of planes [3, H, W, C] along H; 0 with fewer than three rows."""
    if planes.shape[1] < 3:
        return planes.new_zeros(())
    return planes.diff(n=2, dim=1).square().mean()


def _sum(terms) -> Tensor:
    return torch.stack(list(terms)).sum()
