"""SDFStudio and MonoSDF scenes: `meta_data.json`, as Replica is distributed for NFC, NeuS and MonoSDF.

Poses are camera-to-world with OpenCV's axes in a normalised frame; `worldtogt` leads from there to the ground truth's
frame and is kept, so that meshes can leave in the units they are measured in. Intrinsics are used without a shift:
SDFStudio, whose format it is, and NFC's loader both shoot rays through pixel centres at +0.5 with them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.data.capture import MAX_COORDINATE, Capture, Frame, Lens
from nfc_splat.data.config import DataConfig
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


def read(root: Path, config: DataConfig) -> Capture:
    """Read meta_data.json; every 10th frame in its order is for testing, as in NFC."""
    path = root / "meta_data.json"
    meta = read_object(path)
    model = text(meta, "camera_model", str(path))
    if model is not None and model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"):
        raise UserError(f"{path}: camera model {model[:80]!r} is not supported, expected OPENCV or PINHOLE")
    world_to_gt = meta.get("worldtogt")
    return Capture(
        source=path,
        frames=[_read_frame(root, path, meta, entry, i, config) for i, entry in enumerate(read_frames(meta, path))],
        hold_out_every=10,
        by_name=False,
        world_to_gt=None if world_to_gt is None else _world_to_gt(world_to_gt, path),
        near_far=_near_far(meta, path),
        bounds=_bounds(meta, path),
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
    if not np.abs(result).max() < MAX_COORDINATE or abs(np.linalg.det(result[:3, :3])) < 1e-12:
        raise UserError(f"{path}: `worldtogt` cannot be inverted; geometry could not be returned to its own frame")
    return result


def _near_far(meta: Mapping[str, Any], path: Path) -> tuple[float, float] | None:
    box = meta.get("scene_box")
    if not isinstance(box, dict):
        return None
    near, far = number(box, "near", f"{path}: scene_box"), number(box, "far", f"{path}: scene_box")
    if near is None or far is None:
        return None
    if not 0 <= near < far:
        raise UserError(f"{path}: scene_box has near {near:g} and far {far:g}, expected 0 <= near < far")
    return near, far


def _bounds(meta: Mapping[str, Any], path: Path) -> np.ndarray | None:
    box = meta.get("scene_box")
    if not isinstance(box, dict) or box.get("aabb") is None:
        return None
    where = f"{path}: scene_box"
    return scene_box(matrix(box["aabb"], "aabb", where, shapes=((2, 3),)), f"{where}: `aabb`")
