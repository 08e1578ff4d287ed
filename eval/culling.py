"""Frustum culling: the part of a surface that lies in the view of at least one camera, as the Replica protocols do it.

There is no test of occlusion and no far limit: what is behind a wall but inside a frustum stays.

Symbols: C cameras, V vertices. Poses are OpenCV (x right, y down, z forward).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import Surface, keep_vertices
from nfc_splat.files import read_json

MAX_POSES = 1_000_000
# MonoSDF and NICE-SLAM add this to the depth they divide by.
DEPTH_OFFSET = 1e-5


@dataclass(frozen=True, eq=False)
class Frusta:
    """C pinhole views of one lens.

    Attributes:
        world_to_camera: [C, 4, 4] float64.
        fx, fy, cx, cy: pixels. The published culling takes the numbers of the calibration as they are and compares
            with the sides 0 and width, 0 and height.
        width, height: pixels.
    """

    world_to_camera: np.ndarray
    fx: float = 600.0
    fy: float = 600.0
    cx: float = 599.5
    cy: float = 339.5
    width: int = 1200
    height: int = 680

    def __len__(self) -> int:
        return len(self.world_to_camera)

    def record(self) -> dict[str, float]:
        """Number and lens, for a protocol block."""
        lens = {key: getattr(self, key) for key in ("fx", "fy", "cx", "cy", "width", "height")}
        return {"poses": len(self), **lens, "depth_offset": DEPTH_OFFSET}


def visible_vertices(vertices: np.ndarray, frusta: Frusta) -> np.ndarray:
    """[V] whether at least one view sees each of `vertices` [V, 3]; float32 as published."""
    from nfc_splat.rendering.kernels.frusta_cpu import LANES, points_in_views
    from nfc_splat.rendering.kernels.threads import numba_threads

    numba_threads()
    poses = np.zeros((-(-len(frusta) // LANES) * LANES, 12), np.float32)  # padding sees nothing: its depth is below 0
    poses[: len(frusta)] = frusta.world_to_camera[_spread(len(frusta)), :3, :].reshape(-1, 12)
    poses = np.ascontiguousarray(poses.reshape(-1, LANES, 12).transpose(0, 2, 1))
    sides = (frusta.cx / frusta.fx, (frusta.width - frusta.cx) / frusta.fx)
    sides += (frusta.cy / frusta.fy, (frusta.height - frusta.cy) / frusta.fy)
    seen = np.zeros(len(vertices), bool)
    lens = np.array([*sides, DEPTH_OFFSET], np.float32)
    points_in_views(np.ascontiguousarray(vertices, np.float32), poses, lens, seen)
    return seen


def _spread(count: int) -> np.ndarray:
    """An order of the poses in which each block holds views from all over the trajectory."""
    stride = max(1, count // 16)
    return np.argsort(np.arange(count) % stride, kind="stable")


def cull_by_frusta(surface: Surface, frusta: Frusta) -> Surface:
    """Without the faces of which no corner is in any view, or the points that are in none.

    A face with one visible corner stays whole. Culling a second time changes nothing.
    """
    return keep_vertices(surface, visible_vertices(surface.vertices, frusta), corners="any")


# ------------------------------------------------------------------------------------------------ files


def read_trajectory(path: Path | str) -> np.ndarray:
    """[C, 4, 4] world-to-camera matrices from a `traj.txt`: per line 16 numbers, a row-major camera-to-world matrix.

    Raises:
        UserError: not a text of such lines, or a matrix that is not rigid.
    """
    path = Path(path)
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a trajectory ({error})") from error
    if not 0 < len(lines) <= MAX_POSES:
        raise UserError(f"{path}: {len(lines)} poses, expected 1 to {MAX_POSES}: one line of 16 numbers each")
    for number, words in enumerate(lines, start=1):
        if len(words) != 16:
            raise UserError(f"{path}: pose {number} has {len(words)} numbers, expected 16 (a row-major 4x4 matrix)")
    try:
        poses = np.array(lines, np.float64).reshape(-1, 4, 4)
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected numbers") from error
    rotations = poses[:, :3, :3]
    rigid = np.isfinite(poses).all((1, 2)) & (np.abs(rotations @ rotations.mT - np.eye(3)).max((1, 2)) < 1e-2)
    if not rigid.all():
        number = int(np.argmin(rigid)) + 1
        raise UserError(f"{path}: pose {number} is not a rotation and a place; expected rigid camera-to-world matrices")
    return np.linalg.inv(poses)


def read_frusta(trajectory: Path | str, intrinsics: Path | str | None = None) -> Frusta:
    """The views of a trajectory with the lens of a `cam_params.json`, or Replica's 1200x680 without one.

    Raises:
        UserError: as `read_trajectory`; a lens without positive sizes.
    """
    poses = read_trajectory(trajectory)
    if intrinsics is None:
        return Frusta(poses)
    values = read_json(Path(intrinsics))
    values = values.get("camera", values) if isinstance(values, dict) else {}
    try:
        lens = {name: float(values[name]) for name in ("fx", "fy", "cx", "cy")}
        width, height = int(values["w"]), int(values["h"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{intrinsics}: expected numbers w, h, fx, fy, cx, cy under 'camera'; {error!r}") from error
    if min(width, height, lens["fx"], lens["fy"]) <= 0 or not np.isfinite(list(lens.values())).all():
        raise UserError(f"{intrinsics}: w, h, fx and fy must be positive, and all of the lens finite")
    return Frusta(poses, **lens, width=width, height=height)
