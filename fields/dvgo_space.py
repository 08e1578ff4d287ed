"""Where DVGO's grids lie and where it looks along rays: a box, or contracted space.

Both spaces sample without jitter, the same in training and test, and both drop what the occupancy mask rules out.

Symbols: R rays, M samples, N inner steps of a contracted ray (and as many outer ones), b = 0.2 the shell into which
contraction maps all that is outside.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nfc_splat.cameras import Rays
from nfc_splat.fields.occupancy_mask import OccupancyMask
from nfc_splat.rendering.occupancy import contract, march_occupancy, uncontract
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.samples import Samples

SHELL = 0.2  # b
THINNING = 0.95  # of a step: outer samples are farther apart than this
FARTHEST = 1 / 128  # inverse distance at which outer steps end, relative to where they begin


class Box(nn.Module):
    """World space, within the grids' box. `near` is the depth at which rays begin."""

    def __init__(self, near: Tensor) -> None:
        super().__init__()
        self.register_buffer("near", near.clone())
        self._near = float(near)  # read once: a GPU is waited for each time

    def sample(self, rays: Rays, mask: OccupancyMask, step: float) -> Samples:
        """Samples `step` (a world length) apart from where each ray enters the box."""
        low, high = mask.box
        return box_steps(rays, low, high, step, near=self._near, offset=0.0, occupancy=mask.occupied, lookup="node")

    def facts(self, box: Tensor) -> dict[str, Any]:
        """What `bounds.json` says of this space and the grids' box [2, 3]."""
        return {"space": "box", "low": box[0].tolist(), "high": box[1].tolist(), "near": self._near}

    def grid_coordinates(self) -> dict[str, Any]:
        """How `visible_samples` finds the grids' coordinates."""
        return {}

    def to_grid(self, points: Tensor) -> Tensor:
        """World points [M, 3] in the grids' coordinates."""
        return points

    def to_world(self, points: Tensor) -> Tensor:
        """The inverse of `to_grid`."""
        return points


class Contracted(nn.Module):
    """All of space in a cube: around `center` what is nearer than `radius` as it is, the rest pressed into a shell.

    Attributes:
        center [3], radius: of the inner part, in world units.
        near_clip: depth below which the near-clip loss acts, in world units.
        norm: of the contraction.
    """

    def __init__(self, center: Tensor, radius: Tensor, near_clip: Tensor, norm: Literal["l2", "inf"]) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("center", center.clone())
        self.register_buffer("radius", radius.clone())
        self.register_buffer("near_clip", near_clip.clone())
        self._radius = float(radius)  # read once: a GPU is waited for each time

    @staticmethod
    def box(device: torch.device) -> Tensor:
        """[2, 3] the cube that the grids fill."""
        corner = torch.full((3,), 1 + SHELL, device=device)
        return torch.stack([-corner, corner])

    def sample(self, rays: Rays, mask: OccupancyMask, step: float, steps: int) -> Samples:
        """Samples at the distances of `distances(steps)` from the camera, outer ones less than about `step` (a length
        in the cube) apart thinned out."""
        length = self.radius / rays.directions.norm(dim=-1)  # one radius, in units of the ray's direction
        table = self.distances(steps)
        low, high = mask.box
        t, ray, index, offsets = march_occupancy(
            (rays.origins - self.center) / self.radius,
            rays.directions / self.radius,
            torch.zeros_like(length),
            length,
            torch.full(length.shape, len(table), device=length.device),
            table,
            mask.occupied,
            low,
            high,
            lookup="node",
            contraction=self.norm,
            shell=SHELL,
            min_spacing=THINNING * step,
        )
        return Samples(rays, t, torch.full_like(t, step * self._radius), ray, offsets, index)

    def distances(self, steps: int) -> Tensor:
        """[2 N] distances from the camera in radii: N = `steps` even ones to 2, N even in inverse distance to 256."""
        device = self.center.device
        inner = torch.linspace(0, 2, steps + 1, device=device)
        outer = 2 / torch.linspace(1, FARTHEST, steps + 1, device=device)
        return torch.cat([(inner[1:] + inner[:-1]) / 2, (outer[1:] + outer[:-1]) / 2])

    def facts(self, box: Tensor) -> dict[str, Any]:
        """What `bounds.json` says of this space; `box` is of the other one."""
        sphere = {"center": self.center.tolist(), "radius": self._radius}
        return {"space": f"contracted ({self.norm})", **sphere, "shell": SHELL}

    def grid_coordinates(self) -> dict[str, Any]:
        """How `visible_samples` finds the grids' coordinates."""
        return dict(center=self.center, radius=self._radius, contraction=self.norm, shell=SHELL)

    def to_grid(self, points: Tensor) -> Tensor:
        """World points [M, 3] in the grids' coordinates."""
        return contract((points - self.center) / self.radius, self.norm, SHELL)

    def to_world(self, points: Tensor) -> Tensor:
        """The inverse of `to_grid`; the cube's outermost points lie farther than any sample."""
        return uncontract(points, self.norm, SHELL) * self.radius + self.center


Space = Box | Contracted


def inner_steps(world_length: int, stepsize: float) -> int:
    """N: steps of a contracted ray before the distance 2, for grids with `world_length` nodes along an axis."""
    return int(2 / (2 + 2 * SHELL) * world_length / stepsize) + 1


def contracted_step(world_length: int, stepsize: float) -> float:
    """Length of a step in the cube's own units."""
    return (2 + 2 * SHELL) / world_length * stepsize
