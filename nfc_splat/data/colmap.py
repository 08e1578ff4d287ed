"""COLMAP scenes: `images/`, optionally `masks/`, and a sparse model in `sparse/0`, `sparse` or `colmap/sparse/0`.

Poses are world-to-camera quaternions and translations in OpenCV axes; COLMAP's pixel centres lie at +0.5 already. Of
several models the one that registers most images is taken.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nfc_splat.data.capture import Capture, Frame, counted, naming
from nfc_splat.data.colmap_model import Model, ModelImage, find_models, image_count, model_files, read_model
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import inside
from nfc_splat.data.parsing import IMAGE_SUFFIXES, is_file, scene_path
from nfc_splat.errors import UserError

FEW_REGISTERED = 0.8


def read(root: Path, config: DataConfig) -> Capture:
    """Read the largest sparse model and pair it with the images by name."""
    folders = find_models(root)
    if not folders:
        raise UserError(
            f"{root}: no COLMAP model in sparse/0, sparse or colmap/sparse/0 (cameras and images, .bin or .txt)"
        )
    for path in (path for folder in folders for path in model_files(folder)):
        inside(root, path.relative_to(root).as_posix(), config)
    counts = {folder: image_count(folder) for folder in folders}
    folder = max(folders, key=lambda folder: counts[folder])
    model = read_model(folder, remedy=_undistorter(root, folder))
    capture = Capture(source=folder, frames=[_frame(root, model, image, config) for image in model.images])
    if len(folders) > 1:
        listed = ", ".join(f"{path.relative_to(root)} ({counts[path]} images)" for path in folders)
        capture.notices.append(f"Of {len(folders)} COLMAP models the largest is used: {listed}.")
    _report_registration(root, capture, config)
    _take_points(model, capture)
    return capture


def _undistorter(root: Path, folder: Path) -> str:
    return (
        f"colmap image_undistorter --image_path {root / 'images'} --input_path {folder} "
        f"--output_path {root.with_name(root.name + '_undistorted')} --output_type COLMAP"
    )


def _frame(root: Path, model: Model, image: ModelImage, config: DataConfig) -> Frame:
    where = model.folder
    path = scene_path(
        root, f"images/{image.name}", allow_external=config.allow_external_paths, source=f"{where}: image list"
    )
    return Frame(
        name=image.name,
        image=path,
        folder=root / "images",
        below=image.name,
        lens=model.lenses[image.camera_id],
        camera_to_world=_camera_to_world(image),
        mask=_mask(root, image.name, config),
    )


def _camera_to_world(image: ModelImage) -> np.ndarray:
    """The inverse of COLMAP's pose; not finite when the quaternion has no direction, which drops the frame later."""
    pose = np.eye(4)
    quaternion = np.array(image.quaternion)
    with np.errstate(all="ignore"):
        w, x, y, z = quaternion / np.linalg.norm(quaternion)
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        pose[:3, :3] = rotation.T
        pose[:3, 3] = -rotation.T @ np.array(image.translation)
    return pose


def _mask(root: Path, name: str, config: DataConfig) -> Path | None:
    """The image's mask in `masks/`, if there is one."""
    if not (root / "masks").is_dir():
        return None
    # COLMAP itself calls the mask of image.jpg image.jpg.png; other tools keep the name or the stem.
    stem = name.rpartition(".")[0] or name
    for candidate in (f"{name}.png", name, f"{stem}.png"):
        path = scene_path(root, f"masks/{candidate}", allow_external=config.allow_external_paths, source=root / "masks")
        if is_file(path):
            return path
    return None


def _report_registration(root: Path, capture: Capture, config: DataConfig) -> None:
    """Say how many of the images COLMAP placed, and warn when they are few."""
    registered = {frame.name for frame in capture.frames}
    files = set(_image_names(root / "images"))
    if not files:
        return
    unregistered = sorted(files - registered)
    line = f"COLMAP registered {len(files) - len(unregistered)} of {counted(len(files), 'image')}"
    if unregistered:
        line += f"; without a pose: {naming(unregistered)}"
    if len(unregistered) > (1 - FEW_REGISTERED) * len(files):
        line = f"Warning: {line}; under 80 %, so the reconstruction may be broken"
    capture.notices.append(line + ".")


def _image_names(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _take_points(model: Model, capture: Capture) -> None:
    if model.points is None or not len(model.points):
        return
    with np.errstate(over="ignore"):
        points = model.points.astype(np.float32)
    finite = np.isfinite(points).all(1)
    if not finite.all():
        dropped = counted(int((~finite).sum()), "point")
        capture.notices.append(f"Warning: {dropped} of the COLMAP model left out for not being finite.")
    capture.points = points[finite]
    capture.colors = (model.colors[finite] / np.float32(255)).astype(np.float32)
