"""What the Blender and nerfstudio flavours of `transforms*.json` share: intrinsics, pose and time of a frame.

Neither needs a shift of the principal point: Blender's is the middle of the image plane (W/2, H/2), nerfstudio's and
instant-ngp's come from COLMAP, which already puts pixel centres at +0.5.
"""

import math
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.cameras import CameraModel
from nfc_splat.data.capture import NO_DISTORTION, Lens
from nfc_splat.data.parsing import matrix, number, opencv_from_opengl, pixels, text
from nfc_splat.errors import UserError

# nerfstudio's names; those that are perspective cameras differ only in which coefficients they have.
PERSPECTIVE = ("PERSPECTIVE", "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")
MAX_COEFFICIENT = 1e4

# Two ways to state focal lengths.
LENGTHS = ("fl_x", "fl_y")
ANGLES = ("camera_angle_x", "camera_angle_y")


def read_lens(meta: Mapping[str, Any], frame: Mapping[str, Any], where: str) -> Lens:
    """Intrinsics of a frame; its own keys go before the file's global ones, whether they are lengths or angles."""
    keys = ChainMap(frame, meta)
    for own, others in ((LENGTHS, ANGLES), (ANGLES, LENGTHS)):
        if any(frame.get(key) is not None for key in own) and not any(frame.get(key) is not None for key in others):
            keys = ChainMap(frame, {key: value for key, value in meta.items() if key not in others})
    model = _camera_model(keys, where)
    return Lens(
        width=pixels(keys, "w", where),
        height=pixels(keys, "h", where),
        fx=number(keys, "fl_x", where),
        fy=number(keys, "fl_y", where),
        cx=number(keys, "cx", where),
        cy=number(keys, "cy", where),
        angle_x=_angle(keys, "camera_angle_x", where),
        angle_y=_angle(keys, "camera_angle_y", where),
        model=model,
        distortion=_distortion(keys, model, where),
        origin=where,
    )


def read_pose(frame: Mapping[str, Any], where: str) -> np.ndarray:
    """The frame's camera-to-world matrix in OpenCV axes; stored with OpenGL's."""
    return opencv_from_opengl(matrix(frame.get("transform_matrix"), "transform_matrix", where))


def read_name(frame: Mapping[str, Any], index: int, path: Path) -> str:
    """The frame's `file_path` without a leading ./"""
    name = text(frame, "file_path", f"{path}: frame {index}")
    if name is None:
        raise UserError(f"{path}: frame {index} has no `file_path`")
    return name.removeprefix("./")


def _angle(keys: Mapping[str, Any], key: str, where: str) -> float | None:
    value = number(keys, key, where)
    if value is not None and not 0 < value < math.pi:
        raise UserError(f"{where}: `{key}` is {value:g}, expected radians between 0 and pi")
    return value


def _camera_model(keys: Mapping[str, Any], where: str) -> CameraModel:
    name = text(keys, "camera_model", where)
    if name == "OPENCV_FISHEYE" or (name is None and keys.get("is_fisheye") is True):
        return "opencv_fisheye"
    if name is None or name in PERSPECTIVE:
        return "opencv"
    raise UserError(
        f"{where}: camera model {name[:80]!r} is not supported, expected one of "
        f"{', '.join((*PERSPECTIVE, 'OPENCV_FISHEYE'))}; undistort the images first"
    )


def _distortion(keys: Mapping[str, Any], model: CameraModel, where: str) -> tuple[float, ...]:
    """Coefficients in the order of `nfc_splat.cameras`."""
    k1, k2, k3, k4, p1, p2 = (number(keys, key, where) or 0.0 for key in COEFFICIENTS)
    worst = max(abs(value) for value in (k1, k2, k3, k4, p1, p2))
    if worst > MAX_COEFFICIENT:
        raise UserError(f"{where}: a distortion coefficient is {worst:g}, expected at most {MAX_COEFFICIENT:g}")
    if model == "opencv_fisheye":
        return (k1, k2, k3, k4, 0.0, 0.0)
    return (k1, k2, k3, p1, p2, k4) if worst else NO_DISTORTION
