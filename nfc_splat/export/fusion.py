"""Surfaces from rendered depth, for every method: truncated signed distances fused from many views (Curless and Levoy
1996), and colours of surface points from the same views.

The numeric part is this package's own. Of open3d's two volumes one loses everything that it is given in version 0.20
(`ScalableTSDFVolume`), and the other (`VoxelBlockGrid`) numbers its vertices differently from run to run; both hold the
whole scene in memory, and know no lattice nodes shared between blocks.

Symbols: V views, P pixels of all views, N points, n blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.export.marching_cubes import BLOCK, NODES, Lattice
from nfc_splat.rendering import SceneModel

OPAQUE = 0.5  # alpha from which a pixel has a depth
MOST_PIXELS = 2**28  # of all views: 1.9 GB
FAR = 4.0  # in medians of the depth: what is farther is taken for backdrop
OUTLIERS = 0.005  # share of the points at each end of an axis that do not count for the scene's size
TOUCHING = 2**17  # pixels of a view that are asked which blocks they touch


@dataclass(frozen=True, eq=False)
class DepthViews:
    """What a model shows from V cameras without lens distortion.

    Attributes:
        poses: [V, 3, 4] float64 world to camera, OpenCV axes.
        lenses: [V, 4] float64 fx, fy, cx, cy for pixel centres at +0.5.
        sizes: [V, 2] int64 width, height.
        firsts: [V] int64 number of each view's first pixel.
        depth: [P] float32 camera-space z, 0 where there is no surface.
        pixels: [P, 3] uint8 colours.
        dropped: how many opaque pixels show no surface because their alpha, depth or colour is not finite.
    """

    poses: np.ndarray
    lenses: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray
    depth: np.ndarray
    pixels: np.ndarray
    dropped: int

    def __len__(self) -> int:
        return len(self.poses)

    def notices(self) -> list[str]:
        """What there is to say of pixels that were left out."""
        return [f"left out {self.dropped:,} pixels with values that are not finite"] if self.dropped else []

    def points(self, view: int, most: int, shift: float = 0.0) -> np.ndarray:
        """[N, 3] world points of about `most` pixels of a view at the most, moved `shift` farther along their rays."""
        (width, height), first = self.sizes[view], self.firsts[view]
        stride = max(1, int(np.ceil(np.sqrt(width * height / most))))
        depth = self.depth[first : first + width * height].reshape(height, width)[::stride, ::stride]
        rows, columns = np.nonzero(depth)
        return self._lifted(view, rows * stride, columns * stride, shift)

    def _lifted(self, view: int, rows: np.ndarray, columns: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """[N, 3] world points of a view's pixels, moved `shift` farther along their rays."""
        fx, fy, cx, cy = self.lenses[view]
        depth = self.depth[self.firsts[view] + rows * self.sizes[view, 0] + columns]
        directions = np.stack([(columns + 0.5 - cx) / fx, (rows + 0.5 - cy) / fy, np.ones(len(rows))], 1)
        away = depth + shift / np.linalg.norm(directions, axis=1)
        rotation, translation = self.poses[view, :, :3], self.poses[view, :, 3]
        return (directions * away[:, None] - translation) @ rotation

    def colored_points(self, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """World points [N, 3] of at most `most` pixels with a surface, evenly from all, and colours in [0, 1]."""
        found = np.flatnonzero(self.depth)
        found = found[np.arange(min(most, len(found))) * len(found) // max(1, min(most, len(found)))]
        owners = np.searchsorted(self.firsts, found, side="right") - 1
        parts = [np.zeros((0, 3))]
        for view in range(len(self)):
            places = found[owners == view] - self.firsts[view]
            parts.append(self._lifted(view, *np.divmod(places, self.sizes[view, 0])))
        colors = torch.from_numpy(self.pixels[found]).float() / 255
        return torch.from_numpy(np.concatenate(parts)), colors

    def nearer_than(self, farthest: float) -> "DepthViews":
        """The same without surfaces beyond this depth."""
        return replace(self, depth=np.where(self.depth <= farthest, self.depth, np.float32(0)))

    def median_depth(self) -> float:
        """Of all pixels with a surface."""
        return float(np.median(self.depth[self.depth > 0]))

    def pixel_size(self) -> float:
        """What a pixel covers at the median depth, for the middle one of the views."""
        return self.median_depth() / float(np.median(self.lenses[:, :2]))


def draw_views(model: SceneModel, cameras: Cameras, advance: Callable[[], None] = lambda: None) -> DepthViews:
    """Colour and depth of every camera, without its lens distortion.

    More pixels than `MOST_PIXELS` are made fewer, by drawing smaller images.

    Raises:
        UserError: nothing opaque and finite is in view.
    """
    cameras = replace(cameras, model="pinhole", distortion=None)
    total = int(cameras.sizes.prod(1).sum())
    if total > MOST_PIXELS:
        cameras = cameras.downscaled((total / MOST_PIXELS) ** 0.5)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    counts = cameras.sizes.prod(1).numpy()
    firsts = np.cumsum([0, *counts])[:-1]
    depth, pixels = np.empty(counts.sum(), np.float32), np.empty((counts.sum(), 3), np.uint8)
    black, dropped = torch.zeros(3, device=device), 0
    for index, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        with torch.no_grad():
            drawn = model.render(cameras[index].to(device), background=black)
        place = slice(first, first + count)
        alpha, away = drawn.alpha.reshape(-1).float(), drawn.depth.reshape(-1).float()
        # Black behind: divided by alpha, the colour is the surface's own.
        color = drawn.color.reshape(-1, 3).float() / alpha.clamp_min(OPAQUE)[:, None]
        # NaN is not below anything: such an alpha is counted.
        opaque, finite = ~(alpha < OPAQUE), alpha.isfinite() & away.isfinite() & color.isfinite().all(1)
        dropped += int((opaque & ~finite).sum())
        depth[place] = torch.where(opaque & finite & (away > 0), away, 0).cpu().numpy()
        pixels[place] = (color.nan_to_num(0).clamp(0, 1) * 255).round().byte().cpu().numpy()
        advance()
    if not depth.any():
        remedy = f"{dropped:,} are not finite: the training diverged" if dropped else "train longer"
        raise UserError(
            f"nothing is in view: none of {counts.sum():,} pixels of {len(cameras)} views is opaque "
            f"(alpha at least {OPAQUE:g}) with a depth; {remedy}"
        )
    lenses = torch.stack([cameras.Ks[:, 0, 0], cameras.Ks[:, 1, 1], cameras.Ks[:, 0, 2], cameras.Ks[:, 1, 2]], 1)
    numbers = lambda tensor: np.ascontiguousarray(tensor.double().numpy())  # noqa: E731
    sizes = np.ascontiguousarray(cameras.sizes.numpy())
    return DepthViews(numbers(cameras.viewmats[:, :3]), numbers(lenses), sizes, firsts, depth, pixels, dropped)


def seen_box(views: DepthViews, outliers: float = 0.0) -> np.ndarray:
    """[2, 3] the box around what the views show, up to a share of the points at each end of each axis."""
    points = np.concatenate([views.points(view, max(1000, 2**20 // len(views))) for view in range(len(views))])
    return np.quantile(points, [outliers, 1 - outliers], axis=0)


@dataclass(frozen=True, eq=False)
class FusedDepth:
    """The signed distance fused from views, as a function on a lattice: positive in matter, per `truncation`.

    Attributes:
        views: what is fused.
        lattice: where.
        truncation: distance from the surface beyond which views tell no more than that there is nothing, or nothing at
            all behind it; a world length.
    """

    views: DepthViews
    lattice: Lattice
    truncation: float

    def __call__(self, blocks: np.ndarray) -> np.ndarray:
        """[n, NODES, NODES, NODES] values at the nodes of blocks [n, 3]; NaN where no view tells of a node."""
        from nfc_splat.rendering.kernels.fusion_cpu import fuse_nodes
        from nfc_splat.rendering.kernels.threads import numba_threads

        numba_threads()
        views = self.views
        distance, weight = np.empty((2, len(blocks), NODES, NODES, NODES), np.float32)
        fuse_nodes(
            self.lattice.corners(blocks),
            self.lattice.cell,
            views.poses,
            views.lenses,
            views.sizes,
            views.firsts,
            views.depth,
            self.truncation,
            distance,
            weight,
        )
        return np.where(weight > 0, -distance, np.float32(np.nan))

    def touched(self) -> np.ndarray:
        """[n, 3] the blocks of the lattice within the truncation of some view's surface."""
        count, side = self.lattice.blocks, BLOCK * self.lattice.cell
        found = np.zeros(count, bool)
        for view in range(len(self.views)):
            for shift in (-self.truncation, 0.0, self.truncation):
                points = self.views.points(view, TOUCHING, shift)
                blocks = np.floor((points - self.lattice.low) / side).astype(np.int64)
                found[tuple(blocks[((blocks >= 0) & (blocks < count)).all(1)].T)] = True
        return np.argwhere(found)


def colors_from_views(points: np.ndarray, views: DepthViews, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """[N, 3] uint8 mean colours of points [N, 3] over the views whose surface is within `tolerance` of them, grey where
    there is none, and [N] whether there is one."""
    from nfc_splat.rendering.kernels.fusion_cpu import color_points
    from nfc_splat.rendering.kernels.threads import numba_threads

    numba_threads()
    colors, weight = np.empty((len(points), 3), np.float32), np.empty(len(points), np.float32)
    points = np.ascontiguousarray(points, np.float64)
    lenses = (views.poses, views.lenses, views.sizes, views.firsts)
    color_points(points, *lenses, views.depth, views.pixels, float(tolerance), colors, weight)
    seen = weight > 0
    return np.where(seen[:, None], colors.round(), 128).astype(np.uint8), seen
