"""LLFF scenes: `poses_bounds.npy` with a row of 17 numbers per image, and `images/`, often `images_8/` and its like.

A row is a 3x5 matrix [R | t | h w f], row by row, and the nearest and farthest depth of the points that the image sees.
The columns of R are the camera's axes down, right and backwards in the world. Height, width and focal length are those
of the full-size images in `images/`, whatever `images_N` is used: they are scaled to the file that is read, per axis.
The principal point is the middle of the image, as in the COLMAP models that LLFF makes its files from, so nothing is
shifted. (The NeRF that reads these files counts pixel centres from 0 and so is half a pixel off.)

Rows belong to images in the order of their names: the files hold no names, so the counts must agree. The copies in
`images_N` may have other names and go by the same order.

Poses and depths stay in the frame and units of the file: nothing is recentred, and the nearest depth is not brought to
4/3 (the "bd_factor" of NeRF's loader). Methods normalise on their own.
"""

import re
from pathlib import Path

import numpy as np

from nfc_splat.data.arrays import read_npy
from nfc_splat.data.capture import MAX_FRAMES, Capture, Frame, Lens, counted
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import file_names, inside, scene_file
from nfc_splat.data.parsing import IMAGE_SUFFIXES
from nfc_splat.errors import UserError

POSES = "poses_bounds.npy"
REDUCED = re.compile(r"images_([2-9]|[1-9][0-9]{1,5})")


def read(root: Path, config: DataConfig) -> Capture:
    """Read all rows; every 8th image by name is for testing, as in NeRF."""
    source = root / POSES
    rows = read_rows(scene_file(root, POSES, config))
    capture = Capture(source=source, frames=[], near_far=depth_range(rows, source))
    names, copies = _names(root, len(rows), config, capture)
    for index, (row, name, copy) in enumerate(zip(rows, names, copies, strict=True)):
        lens, pose = row_camera(row, f"{source}: row {index}")
        capture.frames.append(
            Frame(
                name=name,
                image=inside(root, f"images/{name}", config),
                folder=root / "images",
                below=copy,
                lens=lens,
                camera_to_world=pose,
            )
        )
    return capture


def image_folders(root: Path) -> list[Path]:
    """`images` and `images_N` for N from 2, full size first, then by reduction."""
    reduced = [path for path in root.glob("images_*") if REDUCED.fullmatch(path.name) and path.is_dir()]
    full = [root / "images"] if (root / "images").is_dir() else []
    return full + sorted(reduced, key=lambda path: int(path.name[7:]))


def read_rows(path: Path) -> np.ndarray:
    """[N, 17]"""
    rows = read_npy(path)
    if rows.ndim != 2 or rows.shape[1] != 17 or not 1 <= len(rows) <= MAX_FRAMES:
        shape = "x".join(map(str, rows.shape))
        raise UserError(f"{path}: the array is {shape}, expected Nx17 with N from 1 to {MAX_FRAMES}")
    return rows


def _names(root: Path, count: int, config: DataConfig, capture: Capture) -> tuple[list[str], list[str]]:
    """What the images are called in `images`, and in the reduced folder asked for, if that is there."""
    folders = [folder.name for folder in image_folders(root)]
    if not folders:
        raise UserError(f"{root}: there is neither images/ nor images_N/; expected {counted(count, 'photograph')}")
    wanted = f"images_{config.downscale}"
    copies = file_names(root, wanted, IMAGE_SUFFIXES, config) if wanted in folders else []
    # Without full-size images the names are those of the copies to be used, else of any: the count has to be right.
    folder = folders[0] if folders[0] == "images" or not copies else wanted
    names = file_names(root, folder, IMAGE_SUFFIXES, config)
    if len(names) != count:
        raise UserError(
            f"{capture.source}: {counted(count, 'row')} for {counted(len(names), 'image')} in {folder}/; rows go by "
            "the sorted names, so there must be one for each: "
            f"{'remove images that have no row' if len(names) > count else 'restore the images that are lacking'}"
        )
    stems = lambda names: [name.rpartition(".")[0] for name in names]  # noqa: E731
    if len(copies) != count or stems(copies) == stems(names):
        return names, names
    capture.notices.append(f"The images in {wanted}/ have other names than those in {folder}/ and go by their order.")
    return names, copies


def row_camera(row: np.ndarray, where: str) -> tuple[Lens, np.ndarray]:
    """The lens, and the camera-to-world matrix [4, 4] in OpenCV axes, of a row [17]."""
    columns = row[:15].reshape(3, 5)
    return _lens(columns[:, 4], where), _camera_to_world(columns)


def _lens(size_and_focal: np.ndarray, where: str) -> Lens:
    height, width, focal = size_and_focal.tolist()
    for name, value in (("height", height), ("width", width)):
        if not 1 <= value <= 2**20 or value != round(value):
            raise UserError(f"{where}: the {name} is {value:g}, expected a whole number from 1 to {2**20}")
    if not 0 < focal < 1e9:
        raise UserError(f"{where}: the focal length is {focal:g}, expected positive pixels")
    return Lens(width=int(width), height=int(height), fx=focal, fy=focal, origin=where)


def _camera_to_world(columns: np.ndarray) -> np.ndarray:
    """[4, 4] in OpenCV axes from [3, 5]; down, right, backwards become right, down, forwards."""
    pose = np.eye(4)
    pose[:3] = np.stack([columns[:, 1], columns[:, 0], -columns[:, 2], columns[:, 3]], 1)
    return pose


def depth_range(rows: np.ndarray, source: Path) -> tuple[float, float]:
    """The nearest and the farthest depth of all rows [N, 17], without the margin that NeRF takes off (0.9 near)."""
    bounds = rows[:, 15:]
    with np.errstate(invalid="ignore"):
        wrong = ~((0 <= bounds[:, 0]) & (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 1] < np.inf))
    if wrong.any():
        near, far = bounds[wrong][0].tolist()
        raise UserError(
            f"{source}: row {int(wrong.argmax())} has the depths {near:g} and {far:g}, expected 0 <= near < far"
        )
    return float(bounds[:, 0].min()), float(bounds[:, 1].max())
