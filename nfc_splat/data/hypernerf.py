"""Nerfies and HyperNeRF scenes: `dataset.json`, `metadata.json`, `scene.json`, `camera/ID.json`, `rgb/1x/ID.png`.

A camera has a world-to-camera rotation in OpenCV axes, a position, and the lens of the full-size image in `rgb/1x`,
with pixel centres at +0.5; `rgb/2x` and its like are the same images reduced. `metadata.json` numbers the moments:
`time_id`, in older scenes `warp_id`, which Nerfies learned a deformation for, or else `appearance_id`. `train_ids` and
`val_ids` of `dataset.json` are the split, and what they call validation is what results are published on.

Nerfies moves `center` of `scene.json` to the origin and multiplies by `scale` on reading; `near` and `far` are in that
frame. Here everything stays in the frame and units of the cameras and of `points.npy`, and the depths are brought
there.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.data.arrays import read_npy
from nfc_splat.data.capture import MAX_FRAMES, NO_DISTORTION, Capture, Frame, Lens, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import inside, scene_file
from nfc_splat.data.parsing import MAX_SKEW, image_path, is_file, matrix, number, read_object, vector
from nfc_splat.data.transforms import MAX_COEFFICIENT
from nfc_splat.errors import UserError

ID = re.compile(r"[A-Za-z0-9_.-]{1,200}")
TIME_KEYS = ("time_id", "warp_id", "appearance_id")
POINT_BYTES = 2**29


def read(root: Path, config: DataConfig) -> Capture:
    """Read the cameras that the split names, and the points."""
    source = root / "dataset.json"
    capture = Capture(source=source, frames=[])
    splits = _splits(read_object(scene_file(root, source.name, config)), capture)
    times = _times(read_object(scene_file(root, "metadata.json", config)), splits, root / "metadata.json")
    for name in sorted(splits):
        capture.frames.append(_frame(root, name, splits[name], times[name], config))
    capture.near_far = _near_far(scene_file(root, "scene.json", config))
    _take_points(root, config, capture)
    return capture


def _splits(meta: Mapping[str, Any], capture: Capture) -> dict[str, str | None]:
    """ "train" or "test" by id; None for all where nothing is held out."""
    listed = {key: _ids(meta, key, capture.source) for key in ("train_ids", "val_ids", "ids")}
    if not listed["train_ids"]:
        raise UserError(f"{capture.source}: `train_ids` is empty or absent, expected the names of the training images")
    both = sorted(set(listed["train_ids"]) & set(listed["val_ids"]))
    if both:
        raise UserError(f"{capture.source}: {naming(both)} are in `train_ids` and in `val_ids`; keep one")
    unlisted = sorted(set(listed["ids"]) - set(listed["train_ids"]) - set(listed["val_ids"]))
    if unlisted:
        capture.notices.append(f"Images that are neither in train_ids nor in val_ids are left out: {naming(unlisted)}.")
    if not listed["val_ids"]:
        capture.notices.append("dataset.json has no val_ids; test images are held out of its train_ids.")
        return dict.fromkeys(listed["train_ids"])
    capture.notices.append("The val_ids of dataset.json are the test images.")
    return dict.fromkeys(listed["train_ids"], "train") | dict.fromkeys(listed["val_ids"], "test")


def _ids(meta: Mapping[str, Any], key: str, source: Path) -> list[str]:
    names = meta.get(key)
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and ID.fullmatch(name) for name in names):
        raise UserError(f"{source}: `{key}` is not a list of names of letters, digits and _ . -")
    if len(names) > MAX_FRAMES:
        raise UserError(f"{source}: {len(names)} names in `{key}`, expected at most {MAX_FRAMES}")
    return names


def _times(meta: Mapping[str, Any], splits: Mapping[str, str | None], source: Path) -> dict[str, float | None]:
    """The number of every image's moment, by the first of `TIME_KEYS` that any image has."""
    lacking = [name for name in splits if not isinstance(meta.get(name), dict)]
    if lacking:
        raise UserError(f"{source}: holds no object for {naming(lacking)}, which dataset.json lists")
    key = next((key for key in TIME_KEYS if any(key in meta[name] for name in splits)), TIME_KEYS[0])
    return {name: number(meta[name], key, f"{source}: {name}", integral=True) for name in splits}


def _frame(root: Path, name: str, split: str | None, time: float | None, config: DataConfig) -> Frame:
    path = root / "camera" / f"{name}.json"
    camera = read_object(scene_file(root, f"camera/{name}.json", config))
    image = image_path(root, f"rgb/1x/{name}", allow_external=config.allow_external_paths, source=path)
    return Frame(
        name=image.name if is_file(image) else f"{name}.png",
        image=image,
        folder=root / "rgb" / "1x",
        below=f"{name}.png",
        lens=_lens(camera, str(path)),
        camera_to_world=_pose(camera, str(path)),
        split=split,
        time=time,
    )


def _pose(camera: Mapping[str, Any], where: str) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = matrix(camera.get("orientation"), "orientation", where, ((3, 3),)).T
    pose[:3, 3] = _required(vector(camera, "position", 3, where), "position", where)
    return pose


def _lens(camera: Mapping[str, Any], where: str) -> Lens:
    """`pixel_aspect_ratio` is the vertical focal length as a share of the horizontal one."""
    focal = _required(number(camera, "focal_length", where), "focal_length", where)
    center = _required(vector(camera, "principal_point", 2, where), "principal_point", where)
    size = _required(vector(camera, "image_size", 2, where), "image_size", where)
    aspect = number(camera, "pixel_aspect_ratio", where)
    skew = number(camera, "skew", where) or 0.0
    if abs(skew) > MAX_SKEW * abs(focal):
        raise UserError(f"{where}: `skew` is {skew:g}, expected none; undistort the images first")
    for value in size:
        if not 1 <= value <= 2**20 or value != round(value):
            raise UserError(f"{where}: `image_size` is {size}, expected whole pixels from 1 to {2**20}")
    radial = vector(camera, "radial_distortion", 3, where) or [0.0] * 3
    key = "tangential" if "tangential" in camera else "tangential_distortion"  # the name in Nerfies' first scenes
    tangential = vector(camera, key, 2, where) or [0.0] * 2
    worst = max(abs(value) for value in (*radial, *tangential))
    if worst > MAX_COEFFICIENT:
        raise UserError(f"{where}: a distortion coefficient is {worst:g}, expected at most {MAX_COEFFICIENT:g}")
    return Lens(
        width=int(size[0]),
        height=int(size[1]),
        fx=focal,
        fy=focal * (1.0 if aspect is None else aspect),
        cx=center[0],
        cy=center[1],
        model="opencv",
        distortion=(*radial, *tangential, 0.0) if worst else NO_DISTORTION,
        origin=where,
    )


def _required(value: Any, key: str, where: str) -> Any:
    if value is None:
        raise UserError(f"{where}: there is no `{key}`, which a camera needs")
    return value


def _near_far(path: Path) -> tuple[float, float]:
    """`near` and `far` in the units of the cameras."""
    meta = read_object(path)
    scale, near, far = (_required(number(meta, key, str(path)), key, str(path)) for key in ("scale", "near", "far"))
    if not 1e-9 <= scale <= 1e9:
        raise UserError(f"{path}: `scale` is {scale:g}, expected a positive number (1e-9 to 1e9)")
    if not 0 <= near < far:
        raise UserError(f"{path}: `near` is {near:g} and `far` is {far:g}, expected 0 <= near < far")
    return near / scale, far / scale


def _take_points(root: Path, config: DataConfig, capture: Capture) -> None:
    path = inside(root, "points.npy", config)
    if not is_file(path):
        return
    points = read_npy(path, POINT_BYTES)
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(f"{path}: the array is {'x'.join(map(str, points.shape))}, expected Nx3")
    with np.errstate(over="ignore"):
        points = points.astype(np.float32)
    finite = np.isfinite(points).all(1)
    if not finite.all():
        dropped = counted(int((~finite).sum()), "point")
        capture.notices.append(f"Warning: {dropped} of points.npy left out for not being finite.")
    capture.points = points[finite]
