"""Cameras and their rays.

Conventions, used everywhere inside: world-to-camera `viewmats` in OpenCV axes (x right, y down, z forward), `Ks` in
pixels, pixel centres at +0.5 (pixel (row 0, column 0) is the square [0, 1) x [0, 1), its centre is (0.5, 0.5)), time
in [0, 1]. As in gsplat only fx, fy, cx and cy of `Ks` count: there is no skew. Symbols: C cameras, M points, P pixels,
H rows, W columns, `*request` the shape asked for (`C, H, W` or `P`).

Distortion is OpenCV's. Coefficients are stored as six numbers per camera:
    "pinhole"         all zero
    "opencv"          k1, k2, k3, p1, p2, k4   radial (k4 is r^8, kept 0 by every reader but nerfstudio's) + tangential
    "opencv_fisheye"  k1, k2, k3, k4, 0, 0     equidistant (Kannala-Brandt)
`distort` is the closed form, `undistort` its inverse by Newton's method in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

CameraModel = Literal["pinhole", "opencv", "opencv_fisheye"]

# A ray's camera-space z is 1, so a fisheye direction at or beyond 90 degrees from the axis has no such ray.
MAX_FISHEYE_ANGLE = math.radians(89.0)


@dataclass(frozen=True)
class Rays:
    """Rays of a request.

    Attributes:
        origins: [*request, 3] world space.
        directions: [*request, 3] world space, scaled so that their camera-space z is 1: the distance along a ray in
            units of its direction *is* the depth. Normalise them for view-dependent colour.
        times: [*request] in [0, 1], or None for static scenes.
        near, far: floats in world units along camera z.
    """

    origins: Tensor
    directions: Tensor
    times: Tensor | None
    near: float
    far: float


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of C cameras, which may differ in size and distortion coefficients but not in camera model.

    Attributes:
        viewmats: [C, 4, 4] world to camera, OpenCV axes.
        Ks: [C, 3, 3] in pixels, for pixel centres at +0.5.
        sizes: [C, 2] int64 (width, height).
        times: [C] in [0, 1], or None for static scenes.
        distortion: [C, 6], see the module docstring; None for "pinhole".
        model: which distortion.
        near, far: depth range in world units.
    """

    viewmats: Tensor
    Ks: Tensor
    sizes: Tensor
    times: Tensor | None = None
    distortion: Tensor | None = None
    model: CameraModel = "pinhole"
    near: float = 0.01
    far: float = 1e10

    def __post_init__(self):
        count = self.viewmats.shape[0]
        shapes = {"viewmats": (4, 4), "Ks": (3, 3), "sizes": (2,), "times": (), "distortion": (6,)}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != (count, *shape):
                raise ValueError(f"cameras: {name} has shape {tuple(tensor.shape)}, expected {(count, *shape)}")
        if self.model != "pinhole" and self.distortion is None:
            raise ValueError(f"cameras: model {self.model!r} needs distortion coefficients")

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Cameras":
        """The cameras at `index`; an int gives a batch of one."""
        if isinstance(index, int):
            index = [index]
        pick = lambda tensor: None if tensor is None else tensor[index]  # noqa: E731
        return replace(
            self,
            viewmats=self.viewmats[index],
            Ks=self.Ks[index],
            sizes=self.sizes[index],
            times=pick(self.times),
            distortion=pick(self.distortion),
        )

    @classmethod
    def pinhole(
        cls,
        viewmats: Tensor,  # [C, 4, 4]
        Ks: Tensor,  # [C, 3, 3] or [3, 3]
        width: int,
        height: int,
        *,
        times: Tensor | None = None,  # [C]
    ) -> "Cameras":
        """C undistorted cameras of one size, such as those of a camera path."""
        count = viewmats.shape[0]
        sizes = torch.tensor([width, height], device=viewmats.device).expand(count, 2)
        return cls(viewmats, Ks.expand(count, 3, 3), sizes, times)

    @staticmethod
    def concatenate(batches: Sequence["Cameras"]) -> "Cameras":
        """All cameras of `batches`, in order. Raises ValueError when model, depth range or timing do not agree."""
        first = batches[0]
        kind = lambda c: (c.model, c.near, c.far, c.times is None)  # noqa: E731
        for other in batches[1:]:
            if kind(other) != kind(first):
                raise ValueError(f"cameras of different kinds cannot be joined: {kind(first)} and {kind(other)}")
        distortions = [_coefficients(c) for c in batches] if any(c.distortion is not None for c in batches) else None
        return replace(
            first,
            viewmats=torch.cat([c.viewmats for c in batches]),
            Ks=torch.cat([c.Ks for c in batches]),
            sizes=torch.cat([c.sizes for c in batches]),
            times=None if first.times is None else torch.cat([c.times for c in batches]),
            distortion=None if distortions is None else torch.cat(distortions),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Cameras":
        """The same cameras on `device`; `dtype` changes the floating-point tensors only."""
        move = lambda tensor: None if tensor is None else tensor.to(device=device, dtype=dtype)  # noqa: E731
        return replace(
            self,
            viewmats=move(self.viewmats),
            Ks=move(self.Ks),
            sizes=self.sizes.to(device=device),
            times=move(self.times),
            distortion=move(self.distortion),
        )

    @property
    def width(self) -> int:
        """Width in pixels, common to all cameras; ValueError when they differ."""
        return self._common_size()[0]

    @property
    def height(self) -> int:
        """Height in pixels, common to all cameras; ValueError when they differ."""
        return self._common_size()[1]

    def _common_size(self) -> tuple[int, int]:
        sizes = torch.unique(self.sizes, dim=0).tolist()
        if len(sizes) != 1:
            raise ValueError(f"{len(self)} cameras have {len(sizes)} different sizes; ask for one camera at a time")
        return sizes[0][0], sizes[0][1]

    @property
    def centers(self) -> Tensor:
        """[C, 3] positions of the cameras in world space."""
        rotation, translation = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return -(rotation.transpose(1, 2) @ translation[..., None])[..., 0]

    def downscaled(self, factor: float) -> "Cameras":
        """The cameras of the same images reduced `factor` times in both directions.

        The new size is a whole number of pixels (`downscaled_size`); `Ks` are scaled by exactly new size / old size per
        axis. As pixel centres lie at +0.5, that leaves every ray through a given point of the image where it was.
        """
        new = downscaled_size(self.sizes, factor)
        return self.resized(new)

    def resized(self, sizes: Tensor) -> "Cameras":
        """The cameras of the same images resampled to `sizes` [C, 2] (width, height)."""
        scale = torch.ones_like(self.Ks)
        scale[:, :2] = (sizes.to(self.Ks) / self.sizes.to(self.Ks))[:, :, None]
        return replace(self, Ks=self.Ks * scale, sizes=sizes)

    def rays(self, pixels: Tensor | None = None) -> Rays:
        """The rays through pixel centres, exact for every camera model.

        Args:
            pixels: [P, 3] int64 (camera, row, column), or None for every pixel of every camera, which must then
                all have the same size (ValueError otherwise).

        Returns:
            `Rays` of shape [P] or [C, H, W]. A distorted pixel that no ray reaches gets the direction whose
            distortion comes closest; fisheye directions are limited to 89 degrees from the axis.
        """
        if pixels is None:
            cameras = torch.arange(len(self), device=self.viewmats.device)[:, None, None]
            rows = torch.arange(self.height, device=self.viewmats.device)[:, None]
            columns = torch.arange(self.width, device=self.viewmats.device)
            cameras, rows, columns = torch.broadcast_tensors(cameras, rows, columns)
        else:
            cameras, rows, columns = pixels.unbind(-1)
        centers = torch.stack([columns, rows], -1).to(self.Ks) + 0.5
        directions = self._directions(cameras, centers)
        times = None if self.times is None else self.times[cameras]
        return Rays(self.centers[cameras], directions, times, self.near, self.far)

    def _directions(self, cameras: Tensor, points: Tensor) -> Tensor:
        """World-space directions [*request, 3] through `points` [*request, 2] of the images of `cameras` [*request]."""
        focal = torch.stack([self.Ks[:, 0, 0], self.Ks[:, 1, 1]], -1)
        normalized = (points - self.Ks[:, :2, 2][cameras]) / focal[cameras]
        if self.model != "pinhole":
            normalized = undistort(normalized, self.distortion[cameras], self.model)
        directions = torch.cat([normalized, torch.ones_like(normalized[..., :1])], -1)
        # Row vectors times R are R^T times column vectors: camera to world.
        return (directions[..., None, :] @ self.viewmats[:, :3, :3][cameras])[..., 0, :]

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where world points are seen, in closed form.

        Args:
            points: [M, 3] the same points for every camera, or [C, M, 3], in world units.

        Returns:
            pixels [C, M, 2] (x, y), meaningful where the depth is positive, and depths [C, M], camera-space z. Points
            outside the image or behind the camera are not removed.
        """
        local = points @ self.viewmats[:, :3, :3].transpose(1, 2) + self.viewmats[:, None, :3, 3]
        depth = local[..., 2]
        divisor = torch.where(depth.abs() < 1e-12, 1e-12, depth)
        normalized = local[..., :2] / divisor[..., None]
        if self.model != "pinhole":
            normalized = distort(normalized, self.distortion[:, None], self.model)
        focal = torch.stack([self.Ks[:, 0, 0], self.Ks[:, 1, 1]], -1)
        return normalized * focal[:, None] + self.Ks[:, None, :2, 2], depth


def downscaled_size(sizes: Tensor, factor: float) -> Tensor:
    """`sizes` (any shape, int64 pixels) divided by `factor` >= 1, rounded half up, at least 1."""
    if not factor >= 1:
        raise ValueError(f"downscale factor {factor}: expected at least 1")
    return torch.floor(sizes.double() / factor + 0.5).long().clamp_min(1)


def _coefficients(cameras: Cameras) -> Tensor:
    """[C, 6] distortion, zeros where there is none."""
    if cameras.distortion is not None:
        return cameras.distortion
    return cameras.Ks.new_zeros(len(cameras), 6)


def distort(points: Tensor, coefficients: Tensor, model: CameraModel) -> Tensor:
    """Apply lens distortion to normalised image points (x/z, y/z).

    Args:
        points: [..., 2] ideal points.
        coefficients: [..., 6], broadcastable against `points`, in the order of the module docstring.
        model: which distortion.

    Returns:
        [..., 2] distorted points. Source: OpenCV documentation, "Camera Calibration and 3D Reconstruction" and
        "Fisheye camera model".
    """
    if model == "opencv":
        return _brown(points, coefficients)[0]
    if model == "opencv_fisheye":
        radius = points.norm(dim=-1, keepdim=True)
        angle = torch.atan(radius)
        bent = angle * _fisheye_series(angle, coefficients)[0]
        return points * torch.where(radius > 1e-12, bent / radius.clamp_min(1e-12), 1.0)
    return points


def undistort(points: Tensor, coefficients: Tensor, model: CameraModel) -> Tensor:
    """The inverse of `distort`, to float64 rounding where an inverse exists; same arguments, returns `points`' dtype.

    Not differentiable: the gradient stops at the lens.
    """
    if model == "pinhole":
        return points
    solve = _undistort_brown if model == "opencv" else _undistort_fisheye
    with torch.no_grad():
        return solve(points.double(), coefficients.double()).to(points.dtype)


def _brown(points: Tensor, coefficients: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Brown-Conrady distortion [..., 2] and its symmetric Jacobian (xx, xy, yy), each [...]."""
    x, y = points.unbind(-1)
    k1, k2, k3, p1, p2, k4 = coefficients.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    slope = k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    yy = radial + 2 * y * y * slope + 2 * p2 * x + 6 * p1 * y
    return torch.stack([bent_x, bent_y], -1), (xx, xy, yy)


def _undistort_brown(target: Tensor, coefficients: Tensor, iterations: int = 20) -> Tensor:
    """Newton's method from the distorted point; keeps the best iterate, so that a step too far costs nothing."""
    point = best = target
    best_error = torch.full_like(target[..., 0], torch.inf)
    for _ in range(iterations):
        bent, (xx, xy, yy) = _brown(point, coefficients)
        residual = bent - target
        error = residual.square().sum(-1)
        better = error < best_error
        best = torch.where(better[..., None], point, best)
        best_error = torch.where(better, error, best_error)
        if not bool((best_error > 1e-30).any()):
            break
        determinant = xx * yy - xy * xy
        determinant = torch.where(determinant.abs() < 1e-9, 1e-9, determinant)
        rx, ry = residual.unbind(-1)
        step = torch.stack([yy * rx - xy * ry, xx * ry - xy * rx], -1) / determinant[..., None]
        # Beyond the fold of a strong lens the Jacobian vanishes and plain Newton leaps away.
        length = step.norm(dim=-1, keepdim=True)
        limit = 0.5 * (1 + point.norm(dim=-1, keepdim=True))
        point = point - step * (limit / length.clamp_min(1e-30)).clamp_max(1)
    return best


def _fisheye_series(angle: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """theta_d / theta and d theta_d / d theta for `angle` [..., 1]."""
    k1, k2, k3, k4 = (coefficients[..., i : i + 1] for i in range(4))
    a2 = angle * angle
    series = 1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4)))
    slope = 1 + a2 * (3 * k1 + a2 * (5 * k2 + a2 * (7 * k3 + a2 * 9 * k4)))
    return series, slope


def _undistort_fisheye(target: Tensor, coefficients: Tensor, iterations: int = 20) -> Tensor:
    """Newton's method on the angle from the optical axis."""
    bent = target.norm(dim=-1, keepdim=True)
    angle = bent.clamp_max(MAX_FISHEYE_ANGLE)
    for _ in range(iterations):
        series, slope = _fisheye_series(angle, coefficients)
        step = (angle * series - bent) / torch.where(slope.abs() < 1e-6, 1e-6, slope)
        angle = (angle - step.clamp(-0.5, 0.5)).clamp(0, MAX_FISHEYE_ANGLE)
    return target * torch.where(bent > 1e-12, torch.tan(angle) / bent.clamp_min(1e-12), 1.0)
