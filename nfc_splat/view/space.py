"""The viewer's frame, which way is up, and where a visit begins.

The viewer's frame is the scene's, moved to the middle of the cameras and scaled so that they fill `SIZE` units: the
browser's clipping planes and half-precision covariances then suit millimetres and kilometres alike.

Symbols: C cameras, M points.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nfc_splat.cameras import Cameras
from nfc_splat.rendering.kernels.gaussians_reference import rotation_matrices
from nfc_splat.rendering.paths import camera_to_world, focus_point, inverse, quaternions, up_direction

SIZE = 10.0  # from the middle of the cameras to the farthest, in the viewer's units
_MOST_POINTS = 20_000


@dataclass(frozen=True, eq=False)
class Frame:
    """x' = scale (x - center).

    Attributes:
        center: [3] float64 in world units.
        scale: the viewer's units per world unit.
        up: [3] float64 unit vector.
    """

    center: np.ndarray
    scale: float
    up: np.ndarray

    @classmethod
    def of(cls, cameras: Cameras, points: Tensor | None) -> "Frame":
        """The frame that suits C >= 1 cameras and the [M, 3] points that they see, if any are known."""
        poses = camera_to_world(cameras)
        centers = poses[:, :3, 3]
        middle = centers.mean(0)
        extent = float((centers - middle).norm(dim=-1).max())
        if points is not None and len(points):
            # Cameras close together, such as those of forward-facing captures, say little about the scene's size.
            extent = max(extent, 0.3 * float((_some(points) - middle).norm(dim=-1).median()))
        scale = SIZE / extent if extent > 1e-12 else 1.0
        return cls(middle.numpy(), scale, up_direction(poses).numpy())

    def shown(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] in the viewer's frame."""
        return self.scale * (points - self.center)

    def placed(self, camera: Cameras) -> "Pose":
        """The pose in the viewer's frame of one camera, whose lens is left out of account."""
        pose = camera_to_world(camera)[0]
        width, height = camera.sizes[0].tolist()
        return Pose(
            self.shown(pose[:3, 3].numpy()),
            quaternions(pose[None, :3, :3])[0].numpy(),
            2 * math.atan(0.5 * height / float(camera.Ks[0, 1, 1])),
            width / height,
        )

    def camera(self, pose: "Pose", width: int, height: int, time: float | None) -> Cameras:
        """The camera [1] of that pose in the scene's frame, with an image of `width` x `height` pixels."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = torch.from_numpy(pose.rotation())
        matrix[:3, 3] = torch.from_numpy(pose.position / self.scale + self.center)
        focal = 0.5 * height / math.tan(pose.fov / 2)
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        times = None if time is None else torch.tensor([time])
        return Cameras.pinhole(inverse(matrix)[None].float(), K, width, height, times=times)


@dataclass(frozen=True, eq=False)
class Pose:
    """Where a camera is in the viewer's frame.

    Attributes:
        position: [3].
        wxyz: [4] unit quaternion, camera to world, OpenCV axes.
        fov: vertical field of view in radians.
        aspect: width over height.
    """

    position: np.ndarray
    wxyz: np.ndarray
    fov: float
    aspect: float

    def rotation(self) -> np.ndarray:
        """[3, 3] camera to world."""
        return rotation_matrices(torch.from_numpy(self.wxyz)[None])[0].numpy()

    def fitted(self, aspect: float) -> "Pose":
        """The pose with the field of view that shows the whole picture in a window of that aspect."""
        half = math.tan(self.fov / 2) * max(1.0, self.aspect / aspect)
        return replace(self, fov=2 * math.atan(half))

    def near(self, other: "Pose") -> bool:
        """Whether both see the same, to what a browser rounds."""
        turned = 2 * math.acos(min(1.0, abs(float(self.wxyz @ other.wxyz))))
        return float(np.linalg.norm(self.position - other.position)) < 1e-3 * SIZE and turned < math.radians(0.3)


def first_view(cameras: Cameras, points: Tensor | None) -> tuple[int, float]:
    """Which of C >= 1 cameras to begin at, and how far in front of it its picture's middle is, in world units.

    The camera that sees most of the points [M, 3]; among equals the one that is tilted as most are.
    """
    poses = camera_to_world(cameras)
    tilts = poses[:, :3, 2] @ up_direction(poses)
    score = -(tilts - tilts.median()).abs() / 2
    depths = ((focus_point(poses) - poses[:, :3, 3]) * poses[:, :3, 2]).sum(-1)
    if points is not None and len(points):
        seen, distances = _seen(cameras, _some(points))
        score = score + (10 * seen).round()
        depths = torch.where(seen > 0, distances, depths)
    chosen = int(score.argmax())
    depth = float(depths[chosen])
    spread = float((poses[:, :3, 3] - poses[:, :3, 3].mean(0)).norm(dim=-1).max())
    return chosen, depth if depth > 0 else max(spread, 1e-6)


def _seen(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the points that each camera sees [C], and their median depth [C]; 0 where it sees none."""
    shares, depths = [], []
    for index in range(len(cameras)):
        camera = cameras[index].to(dtype=torch.float64)
        pixels, depth = camera.project(points)
        inside = ((pixels[0] >= 0) & (pixels[0] < camera.sizes[0])).all(-1) & (depth[0] > 0)
        shares.append(inside.double().mean())
        depths.append(depth[0][inside].median() if inside.any() else torch.zeros((), dtype=torch.float64))
    return torch.stack(shares), torch.stack(depths)


def _some(points: Tensor) -> Tensor:
    """At most `_MOST_POINTS` of the finite ones, float64 on the CPU."""
    points = points.detach().double().cpu()
    points = points[points.isfinite().all(-1)]
    return points[:: 1 + len(points) // _MOST_POINTS]
