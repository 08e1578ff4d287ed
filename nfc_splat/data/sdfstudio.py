"""SDFStudio and MonoSDF scenes: `meta_data.json`, as Replica is distributed for NFC, NeuS and MonoSDF.

Poses are camera-to-world with OpenCV's axes in a normalised frame; `worldtogt` leads from there to the ground truth's
frame and is kept, so that meshes can leave in the units they are measured in. Intrinsics are used without a shift:
SDFStudio, whose format it is, and NFC's loader both shoot rays through pixel centres at +0.5 with them.

`scene_box` holds the depth range (`near`, `far`), the box (`aabb`), a `radius`, and `collider_type`, which says where
SDFStudio ends its rays: at the depth range (`near_far`), the `box` or the `sphere`, which is about the origin. Where it
is the box, as indoors, the scene reaches into the box's corners and the radius means nothing: no sphere is passed on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.data.capture import MAX_COORDINATE, Capture, Collider, Frame, Lens
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import scene_file
from nfc_splat.data.parsing import (
    image_path,
    matrix,
    number,
    pinhole_lens,
    pixels,
    read_frames,
    read_object,
    scene_box,
    scene_path,
    text,
)
from nfc_splat.errors import UserError

# What each collider type is made of.
NEEDS: dict[str, tuple[str, ...]] = {"near_far": ("near", "far"), "box": ("aabb",), "sphere": ("radius",)}


def read(root: Path, config: DataConfig) -> Capture:
    """Read meta_data.json; every 10th frame in its order is for testing, as in NFC."""
    path = root / "meta_data.json"
    meta = read_object(scene_file(root, path.name, config))
    model = text(meta, "camera_model", str(path))
    if model is not None and model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"):
        raise UserError(f"{path}: camera model {model[:80]!r} is not supported, expected OPENCV or PINHOLE")
    world_to_gt = meta.get("worldtogt")
    box = _scene_box(meta, path)
    where = f"{path}: scene_box"
    collider = _collider(box, where)
    return Capture(
        source=path,
        frames=[_read_frame(root, path, meta, entry, i, config) for i, entry in enumerate(read_frames(meta, path))],
        hold_out_every=10,
        by_name=False,
        world_to_gt=None if world_to_gt is None else _world_to_gt(world_to_gt, path),
        near_far=_near_far(box, where),
        bounds=_bounds(box, where),
        sphere=None if collider == "box" else _sphere(box, where),
        collider=collider,
    )


def _read_frame(
    root: Path, path: Path, meta: Mapping[str, Any], entry: Mapping[str, Any], index: int, config: DataConfig
) -> Frame:
    name = text(entry, "rgb_path", f"{path}: frame {index}")
    if name is None:
        raise UserError(f"{path}: frame {index} has no `rgb_path`")
    where = f"{path}: frame {name[:200]!r}"
    external = config.allow_external_paths
    foreground = text(entry, "foreground_mask", where)
    return Frame(
        name=name.removeprefix("./"),
        image=image_path(root, name, allow_external=external, source=path),
        lens=_read_lens(meta, entry, where),
        camera_to_world=matrix(entry.get("camtoworld"), "camtoworld", where),
        foreground=None if foreground is None else scene_path(root, foreground, allow_external=external, source=path),
    )


def _read_lens(meta: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> Lens:
    intrinsics = entry.get("intrinsics", meta.get("intrinsics"))
    K = matrix(intrinsics, "intrinsics", where, shapes=((4, 4), (3, 4), (3, 3)))
    return pinhole_lens(K, where, pixels(meta, "width", where), pixels(meta, "height", where))


def _world_to_gt(value: Any, path: Path) -> np.ndarray:
    result = matrix(value, "worldtogt", str(path))
    if not np.abs(result).max() < MAX_COORDINATE or np.abs(result[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise UserError(f"{path}: `worldtogt` is {result.tolist()}, expected finite numbers and the last row 0 0 0 1")
    scales = np.linalg.svd(result[:3, :3], compute_uv=False)
    if not scales[2] > 1e-6 * scales[0]:
        raise UserError(f"{path}: `worldtogt` cannot be inverted; geometry could not be returned to its own frame")
    return result


def _scene_box(meta: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """`scene_box`, empty where there is none."""
    box = meta.get("scene_box")
    if box is not None and not isinstance(box, dict):
        raise UserError(f"{path}: `scene_box` is {str(box)[:80]!r}, expected an object with near, far and aabb")
    return box or {}


def _near_far(box: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    near, far = number(box, "near", where), number(box, "far", where)
    if near is None and far is None:
        return None
    if near is None or far is None:
        raise UserError(f"{where} has only one of near and far; state both or neither")
    if not 0 <= near < far:
        raise UserError(f"{where} has near {near:g} and far {far:g}, expected 0 <= near < far")
    return near, far


def _bounds(box: Mapping[str, Any], where: str) -> np.ndarray | None:
    if box.get("aabb") is None:
        return None
    return scene_box(matrix(box["aabb"], "aabb", where, shapes=((2, 3),)), f"{where}: `aabb`")


def _sphere(box: Mapping[str, Any], where: str) -> np.ndarray | None:
    """[4] centre and radius."""
    radius = number(box, "radius", where)
    if radius is None:
        return None
    if not 0 < radius <= MAX_COORDINATE:
        raise UserError(f"{where} has radius {radius:g}, expected a positive number up to {MAX_COORDINATE:g}")
    return np.array([0.0, 0.0, 0.0, radius])


def _collider(box: Mapping[str, Any], where: str) -> Collider | None:
    """`collider_type`, with what it needs."""
    name = text(box, "collider_type", where)
    if name is None:
        return None
    if name not in NEEDS:
        raise UserError(f"{where} has collider_type {name[:80]!r}, expected one of {', '.join(NEEDS)}")
    if lacking := [key for key in NEEDS[name] if box.get(key) is None]:
        raise UserError(f"{where} has collider_type {name}, but no {lacking[0]}; add it")
    return name
