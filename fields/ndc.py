"""Normalised device coordinates for forward-facing scenes (Mildenhall et al. 2020, appendix C).

In the frame of the mean camera, whose near plane is z = n, a point (x, y, z) becomes (a x / z, b y / z, 1 - 2 n / z).
The scene from the near plane to infinity then fills the cube [-1, 1]^3, and straight rays stay straight. With its
origin moved to the near plane, a ray's distance in this space is s = 1 - n / z, from 0 to 1.

Symbols: C cameras, R rays, M points. The frame has OpenCV's axes and the world's unit of length.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfc_splat.cameras import Cameras, Rays
from nfc_splat.errors import UserError

SMALLEST_SLOPE = 1e-3  # z of a direction in the frame: rays beside or behind the near plane are turned to meet it
FARTHEST = 1e-5  # least 1 - s: depths end at n / this


class NormalizedDeviceCoordinates(nn.Module):
    """The warp of one forward-facing scene; its tensors are buffers, so that a checkpoint holds it."""

    def __init__(self, to_frame: Tensor, slopes: Tensor, near: Tensor) -> None:
        """to_frame: [3, 4] world to frame. slopes: [2] the factors a and b. near: [] the near plane n."""
        super().__init__()
        self.register_buffer("to_frame", to_frame)
        self.register_buffer("slopes", slopes)
        self.register_buffer("near", near)

    @classmethod
    def of_cameras(cls, cameras: Cameras, near: float) -> Self:
        """The frame of the mean camera, with its near plane at `near`, in world units.

        Raises:
            UserError: some camera does not look the same way as the others.
        """
        rotations = cameras.viewmats[:, :3, :3].double()
        forward = F.normalize(rotations[:, 2].sum(0), dim=0)
        right = F.normalize(torch.linalg.cross(rotations[:, 1].sum(0), forward), dim=0)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
        if not bool((rotations[:, 2] @ forward > 0.5).all()):
            raise UserError("--space ndc: the cameras look in different directions; it is for forward-facing scenes")
        center = cameras.centers.double().mean(0)
        focal = torch.stack([cameras.Ks[:, 0, 0], cameras.Ks[:, 1, 1]], 1).double()
        slopes = (2 * focal / cameras.sizes).mean(0)
        to_frame = torch.cat([rotation, -(rotation @ center)[:, None]], 1)
        return cls(to_frame.float(), slopes.float(), torch.tensor(near, device=to_frame.device))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(*(tensors[name] for name in ("to_frame", "slopes", "near")))

    def warp_points(self, points: Tensor) -> Tensor:
        """World points [M, 3] in normalised coordinates; differentiable."""
        local = points @ self.to_frame[:, :3].T + self.to_frame[:, 3]
        x_y, z = local[:, :2], local[:, 2:].clamp_min(SMALLEST_SLOPE * self.near)
        return torch.cat([self.slopes * x_y / z, 1 - 2 * self.near / z], 1)

    def warp_rays(self, rays: Rays) -> Rays:
        """World rays [R] in normalised coordinates: from the near plane (0) to infinity (1)."""
        origins, directions, start = self._local(rays)
        origins = origins + start * directions
        slope = directions / directions[:, 2:]
        flat = self.slopes * origins[:, :2] / self.near
        warped = torch.cat([flat, -torch.ones_like(start)], 1)
        change = torch.cat([self.slopes * slope[:, :2] - flat, torch.full_like(start, 2.0)], 1)
        return replace(rays, origins=warped, directions=change)

    def depth(self, rays: Rays, share: Tensor) -> Tensor:
        """Distances along world rays, in units of their directions, that is depths.

        Args:
            rays: [R] in the world.
            share: [R, S] distances s along the warped rays.

        Returns:
            [R, S], at most about near / `FARTHEST`.
        """
        _, directions, start = self._local(rays)
        return start + self.near * share / ((1 - share).clamp_min(FARTHEST) * directions[:, 2:])

    def _local(self, rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
        """Origins and directions [R, 3] in the frame, and where rays meet the near plane [R, 1]."""
        origins = rays.origins @ self.to_frame[:, :3].T + self.to_frame[:, 3]
        directions = rays.directions @ self.to_frame[:, :3].T
        z = directions[:, 2:].clamp_min(SMALLEST_SLOPE)
        directions = torch.cat([directions[:, :2], z], 1)
        return origins, directions, (self.near - origins[:, 2:]) / z
