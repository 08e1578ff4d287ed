"""Area reduction and lens removal for images and masks.

Symbols: H, W size of the file, h, w size wanted, C channels. Colours under straight alpha are weighted by it, so that
what a transparent pixel happens to store bleeds nowhere and compositing commutes with resampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nfc_splat.cameras import Cameras, distort, undistort

# A wider field cannot be shown on a plane without wasting most pixels on its border.
MAX_HALF_FIELD = 60.0


@dataclass(frozen=True, eq=False)
class Remap:
    """How to take a lens away: the camera that took the picture and the pinhole K [3, 3] that replaces it."""

    camera: Cameras  # a batch of one, float64
    K: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """Resample [1, C, H, W] bilinearly as the pinhole camera of the same size would have seen it."""
        from kornia.geometry.transform import remap

        x, y = _sampling_grid(self).unbind(-1)
        return remap(image, x[None], y[None], mode="bilinear", padding_mode="border", align_corners=True)

    def source_points(self) -> Tensor:
        """[H, W, 2] where the centre of each new pixel lies in the old image, in pixels."""
        camera = self.camera
        rows = torch.arange(camera.height, dtype=torch.float64)[:, None] + 0.5
        columns = torch.arange(camera.width, dtype=torch.float64) + 0.5
        ideal = torch.stack(torch.broadcast_tensors(columns, rows), -1)
        return _distorted_points(camera, self.K, ideal)


@lru_cache(maxsize=2)
def _sampling_grid(remap: Remap) -> Tensor:
    """[H, W, 2] float32 indices to sample at; most scenes use one lens for all images."""
    return (remap.source_points() - 0.5).float()


def _distorted_points(camera: Cameras, K: Tensor, points: Tensor) -> Tensor:
    """Map pixels [..., 2] of the pinhole camera `K` to pixels of the distorted one."""
    normalized = (points - K[:2, 2]) / K.diagonal()[:2]
    bent = distort(normalized, camera.distortion[0], camera.model)
    return bent * camera.Ks[0].diagonal()[:2] + camera.Ks[0, :2, 2]


def undistorted_intrinsics(camera: Cameras) -> Tensor:
    """K [3, 3] of a pinhole camera of the same size that shows only what the picture of `camera` (one) contains.

    It shows the largest upright rectangle between the four straightened edges of the picture (OpenCV's alpha = 0), no
    wider than 60 degrees to either side of the axis. The size stays, so fx and fy may come to differ a little.
    """
    width, height = camera.width, camera.height
    left, right, top, bottom = (_straightened(camera, edge) for edge in _edges(width, height))  # each [n, 2] normalised
    limit = np.tan(np.radians(MAX_HALF_FIELD))
    low = torch.stack([left[:, 0].max(), top[:, 1].max()]).clamp(-limit, limit)
    high = torch.stack([right[:, 0].min(), bottom[:, 1].min()]).clamp(-limit, limit)
    for _ in range(50):
        K = _intrinsics(low, high, width, height)
        if _contained(camera, K):
            return K
        # Strong lenses bulge between the edges' extremes: give way a little from all sides.
        low, high = low + 0.01 * (high - low), high - 0.01 * (high - low)
    raise ValueError("no rectangle of the picture survives undistortion; the distortion coefficients are implausible")


def _edges(width: int, height: int) -> tuple[Tensor, ...]:
    """Pixel centres along the left, right, top and bottom edge, each [n, 2]."""
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = torch.arange(height, dtype=torch.float64) + 0.5
    at = lambda x, y: torch.stack(torch.broadcast_tensors(torch.as_tensor(x), torch.as_tensor(y)), -1)  # noqa: E731
    return at(0.5, y), at(width - 0.5, y), at(x, 0.5), at(x, height - 0.5)


def _straightened(camera: Cameras, points: Tensor) -> Tensor:
    normalized = (points - camera.Ks[0, :2, 2]) / camera.Ks[0].diagonal()[:2]
    return undistort(normalized, camera.distortion[0], camera.model)


def _intrinsics(low: Tensor, high: Tensor, width: int, height: int) -> Tensor:
    """K that maps the normalised rectangle low..high [2] onto the whole image."""
    focal = torch.tensor([width, height], dtype=torch.float64) / (high - low)
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0], K[1, 1] = focal
    K[:2, 2] = -focal * low
    return K


def _contained(camera: Cameras, K: Tensor) -> bool:
    """Whether every border pixel of the pinhole image comes from inside the picture, within a hundredth of a pixel."""
    if not bool((K.diagonal() > 0).all()):
        return False
    border = torch.cat(_edges(camera.width, camera.height))
    source = _distorted_points(camera, K, border)
    limit = torch.tensor([camera.width, camera.height], dtype=torch.float64) - 0.49
    return bool(((source > 0.49) & (source < limit)).all())


def resample(pixels: np.ndarray, width: int, height: int, remap: Remap | None) -> np.ndarray:
    """Take away the lens, then reduce to `width` x `height`: uint8 [H, W, C] (or [H, W]) to uint8 of the same kind."""
    if remap is None and pixels.shape[:2] == (height, width):
        return pixels
    image = torch.from_numpy(np.array(pixels, dtype=np.float32).reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None]
    if remap is not None:
        image = _alpha_weighted(remap, image)
    if image.shape[2:] != (height, width):
        image = _alpha_weighted(lambda picture: area_reduce(picture, width, height), image)
    rounded = (image[0].permute(1, 2, 0) + 0.5).clamp(0, 255).to(torch.uint8)
    return rounded.contiguous().numpy().reshape(height, width, *pixels.shape[2:])


def _alpha_weighted(operation: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Apply a linear `operation` to [1, C, H, W] in 0..255; with C = 4 to the colours times alpha."""
    if image.shape[1] != 4:
        return operation(image)
    alpha = image[:, 3:]
    result = operation(torch.cat([image[:, :3] * (alpha / 255), alpha], 1))
    return torch.cat([result[:, :3] * (255 / result[:, 3:].clamp_min(1e-3)), result[:, 3:]], 1)


def area_reduce(image: Tensor, width: int, height: int) -> Tensor:
    """The mean of [1, C, H, W] over the area of each new pixel, exact for every ratio."""
    old_height, old_width = image.shape[2:]
    if old_height % height == 0 and old_width % width == 0:
        return F.avg_pool2d(image, (old_height // height, old_width // width))
    return _area_last(_area_last(image, width).transpose(2, 3), height).transpose(2, 3)


def _area_last(image: Tensor, size: int) -> Tensor:
    """Area reduction along the last axis, by differences of the running integral."""
    old = image.shape[-1]
    integral = F.pad(image.double().cumsum(-1), (1, 0))
    edges = torch.linspace(0, old, size + 1, dtype=torch.float64)
    whole = edges.floor().long().clamp_max(old - 1)
    at_edges = torch.lerp(integral[..., whole], integral[..., whole + 1], edges - whole)
    return (at_edges.diff(dim=-1) * (size / old)).to(image.dtype)
