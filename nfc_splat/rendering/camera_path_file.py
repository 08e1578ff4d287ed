"""Camera paths as nerfstudio's viewer writes them: `camera_path.json`.

{"render_width", "render_height", "fps", "camera_type", "camera_path": [{"camera_to_world": 16 numbers row by row,
"fov": vertical, in degrees, "render_time": optional}, ...]}, with OpenGL's camera axes.

nerfstudio moves and scales a scene before training, and its paths are in that frame. What it did is in
`dataparser_transforms.json` ({"transform": 3x4, "scale"}): where that file lies beside the path, it is undone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.files import read_json
from nfc_splat.rendering.paths import inverse

MOST_CAMERAS = 99_999
MOST_PIXELS = 32768
MOST_UNITS = 1e9
TRANSFORMS = "dataparser_transforms.json"
TOLERANCE = 1e-2  # of a rotation's columns from orthonormal
KNOWN_TYPES = ("perspective", "pinhole")


@dataclass(frozen=True, eq=False)
class CameraPath:
    """F cameras.

    Attributes:
        poses: [F, 4, 4] float64 camera to world, OpenCV axes, in the scene's frame.
        angles: [F] float64 vertical fields of view in radians.
        times: [F] float32 in [0, 1], or None.
        width, height: in pixels.
        fps: frames per second, or None.
        moved: whether `dataparser_transforms.json` was undone.
    """

    poses: Tensor
    angles: Tensor
    times: Tensor | None
    width: int
    height: int
    fps: float | None
    moved: bool

    def cameras(self, width: int, height: int) -> Cameras:
        """The path with images of another size; the vertical field of view stays."""
        K = torch.eye(3).repeat(len(self.poses), 1, 1)
        K[:, 0, 0] = K[:, 1, 1] = (0.5 * height / torch.tan(0.5 * self.angles)).float()
        K[:, 0, 2], K[:, 1, 2] = width / 2, height / 2
        return Cameras.pinhole(inverse(self.poses).float(), K, width, height, times=self.times)


def read_camera_path(path: Path) -> CameraPath:
    """Read a path that nobody vouches for.

    Raises:
        UserError: what is wrong, with the file and the camera.
    """
    content = read_json(path)
    entries = content.get("camera_path") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: expected a nerfstudio camera path, with a list of cameras as `camera_path`")
    if len(entries) > MOST_CAMERAS:
        raise UserError(f"{path}: {len(entries)} cameras, expected at most {MOST_CAMERAS}")
    kind = content.get("camera_type", "perspective")
    if str(kind).lower() not in KNOWN_TYPES:
        raise UserError(f"{path}: `camera_type` is {_shown(kind)}, expected perspective; other lenses are not drawn")
    places = [f"{path}: camera {index}" for index in range(len(entries))]
    poses = torch.stack([_pose(entry, place) for entry, place in zip(entries, places, strict=True)])
    fovs = [_number(entry, "fov", place, 0.01, 179.0) for entry, place in zip(entries, places, strict=True)]
    beside = path.parent / TRANSFORMS
    width, height = (_number(content, f"render_{side}", str(path), 1, MOST_PIXELS) for side in ("width", "height"))
    return CameraPath(
        poses=_undone(poses, beside) if beside.is_file() else poses,
        angles=torch.tensor(fovs, dtype=torch.float64) * (math.pi / 180),
        times=_times(entries, places),
        width=round(width),
        height=round(height),
        fps=_number(content, "fps", str(path), 1, 1000) if content.get("fps") is not None else None,
        moved=beside.is_file(),
    )


def _times(entries: list[Mapping[str, Any]], places: list[str]) -> Tensor | None:
    """[F], if every camera says when."""
    if any(entry.get("render_time") is None for entry in entries):
        return None
    times = [_number(entry, "render_time", place, 0, 1) for entry, place in zip(entries, places, strict=True)]
    return torch.tensor(times)


def _pose(entry: Mapping[str, Any], where: str) -> Tensor:
    """[4, 4] in OpenCV axes."""
    numbers = _flat(entry.get("camera_to_world"))
    if len(numbers) != 16:
        raise UserError(f"{where}: `camera_to_world` holds {len(numbers)} numbers, expected 16 (a 4x4 matrix)")
    pose = torch.tensor(numbers, dtype=torch.float64).view(4, 4)
    return _rigid(pose, f"{where}: `camera_to_world`") * torch.tensor([1.0, -1.0, -1.0, 1.0])


def _rigid(matrix: Tensor, what: str) -> Tensor:
    """`matrix` [4, 4], checked to be a rotation and a position."""
    rotation = matrix[:3, :3]
    off = (rotation.T @ rotation - torch.eye(3)).abs().max() if matrix.isfinite().all() else torch.tensor(math.inf)
    bottom = (matrix[3] - torch.tensor([0, 0, 0, 1.0])).abs().max()
    if not (off <= TOLERANCE and bottom <= 1e-6 and rotation.det() > 0 and matrix.abs().max() <= MOST_UNITS):
        raise UserError(f"{what} is no rotation and position; expected a camera-to-world matrix")
    return matrix


def _flat(value: Any) -> list[float]:
    """The numbers of a list, or of a list of lists; empty when it holds something else."""
    rows = value if isinstance(value, list) else []
    numbers = [number for row in rows for number in (row if isinstance(row, list) else [row])]
    return [_float(number) for number in numbers] if all(map(_is_number, numbers)) else []


def _undone(poses: Tensor, path: Path) -> Tensor:
    """`poses` before nerfstudio moved and scaled the scene."""
    content = read_json(path)
    numbers = _flat(content.get("transform")) if isinstance(content, dict) else []
    if len(numbers) != 12:
        raise UserError(f"{path}: `transform` holds {len(numbers)} numbers, expected 12 (a 3x4 matrix)")
    scale = _number(content, "scale", str(path), 1e-9, 1e9)
    matrix = torch.cat([torch.tensor(numbers, dtype=torch.float64).view(3, 4), torch.tensor([[0, 0, 0, 1.0]])])
    poses = poses.clone()
    poses[:, :3, 3] /= scale
    return inverse(_rigid(matrix.double(), f"{path}: `transform`")) @ poses


def _number(mapping: Mapping[str, Any], key: str, where: str, low: float, high: float) -> float:
    value = mapping.get(key)
    if not _is_number(value) or not low <= _float(value) <= high:
        raise UserError(f"{where}: `{key}` is {_shown(value)}, expected a number from {low:g} to {high:g}")
    return _float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)[:80]
