"""Initial points from depth images: pixels on a regular grid of training views, lifted into the world.

Deterministic: no random numbers. Symbols: M points, K a view's intrinsics, depth is camera-space z.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.data.images import read_depth
from nfc_splat.data.parsing import is_file
from nfc_splat.data.prepare import View

MAX_POINTS = 50_000
MAX_VIEWS = 100


def points_from_depth(
    views: Sequence[View],
    cameras: Cameras,
    image: Callable[[int], torch.Tensor],
    *,
    depth_scale: float,
    max_pixels: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Back-project at most `MAX_POINTS` pixels of at most `MAX_VIEWS` evenly spaced views.

    Args:
        views: the training views.
        cameras: their undistorted cameras, of any size.
        image: the uint8 picture [H, W, 3 | 4] of a view.
        depth_scale: stored value of one world unit.
        max_pixels: limit for decoding.

    Returns:
        points [M, 3] float32 in world units, colors [M, 3] float32 in [0, 1], and the number of views used.
    """
    usable = [i for i, view in enumerate(views) if view.frame.depth is not None and is_file(view.frame.depth)]
    if not usable:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), 0
    chosen = [usable[k * len(usable) // min(MAX_VIEWS, len(usable))] for k in range(min(MAX_VIEWS, len(usable)))]
    clouds = []
    for i in chosen:
        depth = read_depth(views[i].frame.depth, max_pixels) / depth_scale
        clouds.append(_lift(depth, cameras[i], image(i), MAX_POINTS // len(chosen)))
    points, colors = (np.concatenate(parts) for parts in zip(*clouds, strict=True))
    return points, colors, len(chosen)


def _lift(depth: np.ndarray, camera: Cameras, image: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` points and colours of one view; pixels without depth give none."""
    height, width = depth.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / count))))
    rows, columns = np.meshgrid(np.arange(step // 2, height, step), np.arange(step // 2, width, step), indexing="ij")
    z = depth[rows, columns]
    rows, columns, z = (values[z > 0] for values in (rows, columns, z))
    sized = camera.resized(torch.tensor([[width, height]]))
    rays = sized.rays(torch.from_numpy(np.stack([np.zeros_like(rows), rows, columns], -1)))
    points = rays.origins + torch.from_numpy(z)[:, None] * rays.directions
    # The picture may have another size than the depth image; look up the pixel that holds the same point.
    at = [
        ((index + 0.5) * new / old).astype(np.int64)
        for index, new, old in ((rows, image.shape[0], height), (columns, image.shape[1], width))
    ]
    colors = image[..., :3][at[0], at[1]].float() / 255
    return points.numpy(), colors.numpy()
