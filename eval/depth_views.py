"""Depth L1 of NICE-SLAM: how far the depths of two meshes differ, from random places in a room.

Pictures of 500 x 500 pixels with f = 300 and c = 249.5 are drawn from places uniform in the truth's oriented box, with
its shortest side shrunk to 0.3 and the others to 0.7, lifted by 0.4 along z. Directions are those of a point uniform in
a cube. A pixel that meets nothing has depth 0, and so has one that meets something beyond 20. Faces count from both
sides. Of every picture each 5th row and column is cast, which leaves the expectation as it is.

Symbols: P views, R rays of a view.
"""

from typing import Any

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import Surface, oriented_box
from nfc_splat.open3d_loader import load_open3d

SIZE, FOCAL, CENTER = 500, 300.0, 249.5
STRIDE = 5
RAYS = len(range(STRIDE // 2, SIZE, STRIDE)) ** 2  # of a view
FARTHEST = 20.0
SHRUNK = (0.3, 0.7, 0.7)  # of the sides from the shortest
LIFTED = 0.4
_TRIES = 10_000


def depth_l1(
    pred: Surface,
    gt: Surface,
    *,
    views: int = 1000,
    seed: int = 0,
    unseen: np.ndarray | None = None,  # [U, 3]
) -> float:
    """Mean absolute difference of depth (camera z) over all rays of all views, in the surfaces' units.

    Args:
        pred: a mesh.
        gt: a mesh in metres, z up.
        views: how many random pictures.
        seed: of the places.
        unseen: points of the truth that no camera of the scene saw; a view that holds one is drawn anew.

    Raises:
        ValueError: a cloud, or a mesh without faces.
        UserError: nearly every view holds an unseen point.
    """
    if pred.is_cloud or gt.is_cloud or pred.is_empty or gt.is_empty:
        raise ValueError("depth needs two meshes")
    scenes = [_scene(surface) for surface in (pred, gt)]
    total = 0.0
    for pose in random_poses(gt, views, seed, unseen):
        depths = [cast_depth(scene, pose) for scene in scenes]
        total += float(np.abs(depths[0] - depths[1]).mean())
    return total / views


def random_poses(gt: Surface, views: int, seed: int, unseen: np.ndarray | None = None) -> np.ndarray:
    """[P, 4, 4] camera-to-world matrices, OpenCV axes."""
    random = np.random.default_rng(seed)
    box = oriented_box(gt.used_vertices())
    sides = np.empty(3)
    sides[np.argsort(box.extents)] = np.sort(box.extents) * SHRUNK
    from_box = np.linalg.inv(box.to_box)
    poses: list[np.ndarray] = []
    for _ in range(_TRIES + views):
        place = from_box[:3, :3] @ (random.uniform(-0.5, 0.5, 3) * sides) + from_box[:3, 3] + [0, 0, LIFTED]
        pose = _looking(place, random.uniform(-1, 1, 3))
        if unseen is None or not _any_in_view(unseen, pose):
            poses.append(pose)
        if len(poses) == views:
            return np.stack(poses)
    raise UserError(f"only {len(poses)} of {_TRIES + views} random views hold no unseen point; check the unseen points")


def _looking(place: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """An upright camera; z is up in the world."""
    forward = direction / np.linalg.norm(direction)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = place
    return pose


def _any_in_view(points: np.ndarray, pose: np.ndarray) -> bool:
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
    ahead = z > 0
    u, v = (FOCAL * axis[ahead] / z[ahead] + CENTER for axis in (x, y))
    return bool(((u > 0) & (u < SIZE) & (v > 0) & (v < SIZE)).any())


def _scene(surface: Surface) -> Any:
    open3d = load_open3d()
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        open3d.core.Tensor(surface.vertices.astype(np.float32)), open3d.core.Tensor(surface.faces.astype(np.uint32))
    )
    return scene


def cast_depth(scene: Any, pose: np.ndarray) -> np.ndarray:  # [4, 4]
    """[R] depths along a camera's z; 0 where a ray meets nothing or something too far."""
    offsets = (np.arange(STRIDE // 2, SIZE, STRIDE) - CENTER) / FOCAL
    x, y = np.meshgrid(offsets, offsets)
    rays = np.empty((x.size, 6), np.float32)
    rays[:, :3] = pose[:3, 3]
    rays[:, 3:] = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1) @ pose[:3, :3].T  # its z is 1: length is depth
    depth = scene.cast_rays(load_open3d().core.Tensor(rays))["t_hit"].numpy()
    return np.where(depth < FARTHEST, depth, 0.0)
