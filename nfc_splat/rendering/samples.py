"""Points along rays, packed: what samplers make and fields are asked about.

Symbols: R rays, M samples of all of them together. Ray r owns the rows `offsets[r]:offsets[r + 1]`, nearest first.
Distances `t` are in units of the ray's direction, whose camera-space z is 1: t is depth. Widths are world lengths.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nfc_splat.cameras import Rays
from nfc_splat.rendering.packed import keep


@dataclass(frozen=True, eq=False)
class Samples:
    """M samples of R rays.

    Attributes:
        rays: the R rays, of shape [R].
        t: [M] where each sample is on its ray.
        widths: [M] world length of the interval that the sample stands for.
        ray: [M] int64, which ray; ascending.
        offsets: [R + 1] int64, which rows are a ray's.
        steps: [M] int64, the sample's place in the sampler's table of distances; None where there is none.
    """

    rays: Rays
    t: Tensor
    widths: Tensor
    ray: Tensor
    offsets: Tensor
    steps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.t)

    @cached_property
    def positions(self) -> Tensor:
        """[M, 3] in world space."""
        return torch.addcmul(
            self.rays.origins.index_select(0, self.ray),
            self.rays.directions.index_select(0, self.ray),
            self.t[:, None],
        )

    @cached_property
    def directions(self) -> Tensor:
        """[M, 3] unit viewing directions, from the camera to the sample."""
        return unit_directions(self.rays).index_select(0, self.ray)

    @property
    def times(self) -> Tensor | None:
        """[M] in [0, 1], or None for static scenes."""
        return None if self.rays.times is None else self.rays.times[self.ray]

    def keep(self, chosen: Tensor) -> tuple["Samples", Tensor]:
        """The samples where `chosen` [M] bool, and their former rows [M'] int64."""
        rows = chosen.nonzero()[:, 0]
        kept = replace(
            self,
            t=self.t.index_select(0, rows),
            widths=self.widths.index_select(0, rows),
            ray=self.ray.index_select(0, rows),
            offsets=keep(chosen, self.offsets),
            steps=None if self.steps is None else self.steps.index_select(0, rows),
        )
        if "positions" in self.__dict__:
            kept.__dict__["positions"] = self.positions.index_select(0, rows)
        return kept, rows

    def moved_to(self, positions: Tensor) -> "Samples":
        """The same samples, said to be at `positions` [M, 3] and not on their rays."""
        moved = replace(self)
        moved.__dict__["positions"] = positions
        return moved

    @classmethod
    def dense(cls, rays: Rays, t: Tensor, widths: Tensor) -> "Samples":
        """The same number S of samples on every ray: `t` and `widths` [R, S]."""
        count, each = t.shape
        ray = torch.arange(count, device=t.device).repeat_interleave(each)
        offsets = torch.arange(count + 1, device=t.device) * each
        return cls(rays, t.reshape(-1), widths.reshape(-1), ray, offsets)


def unit_directions(rays: Rays) -> Tensor:
    """[R, 3] the rays' directions, normalised."""
    return torch.nn.functional.normalize(rays.directions, dim=-1)


def flat_rays(rays: Rays) -> Rays:
    """The rays of any request as one list."""
    return replace(
        rays,
        origins=rays.origins.reshape(-1, 3),
        directions=rays.directions.reshape(-1, 3),
        times=None if rays.times is None else rays.times.reshape(-1),
    )
