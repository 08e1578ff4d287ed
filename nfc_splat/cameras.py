"""Cameras and their rays.

Conventions, used everywhere inside: world-to-camera `viewmats` in OpenCV axes (x right, y down, z forward), `Ks` in
pixels, pixel centres at +0.5 (pixel (row 0, column 0) is the square [0, 1) x [0, 1), its centre is (0.5, 0.5)), time
in [0, 1]. Symbols: C cameras, P pixels, `*request` the shape asked for.

Distortion is OpenCV's. Coefficients are stored as six numbers per camera:
    "pinhole"         all zero
    "opencv"          k1, k2, k3, p1, p2, k4   radial (k4 is r^8, kept 0 by every reader but nerfstudio's) + tangential
    "opencv_fisheye"  k1, k2, k3, k4, 0, 0     equidistant (Kannala-Brandt)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

CameraModel = Literal["pinhole", "opencv", "opencv_fisheye"]


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


@dataclass(frozen=True)
class Cameras:
    """A batch of C cameras, which may differ in size and distortion coefficients but not in camera model.

    Attributes:
        viewmats: [C, 4, 4] world to camera, OpenCV axes.
        Ks: [C, 3, 3] in pixels, for pixel centres at +0.5.
        sizes: [C, 2] int64 (width, height).
        times: [C] in [0, 1], or None for static scenes.
        distortion: [C, 6], see the module docstring.
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
