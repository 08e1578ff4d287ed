"""What a geometry protocol needs of a scene's files: the frame, the cameras and the crop box.

Known layouts, both of Replica: NICE-SLAM's (`room0/traj.txt`, `cam_params.json` in the folder or beside it; predictions
are in the truth's frame) and MonoSDF's (`scan1/traj.txt`, with the prediction's frame in `meta_data.json` as
`worldtogt` or in `cameras.npz` as `scale_mat_0`).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.culling import read_frusta
from nfc_splat.eval.protocols import SceneGeometry
from nfc_splat.eval.surface import Box, read_box
from nfc_splat.files import number_in_name, read_json


def read_scene_geometry(
    folder: Path | str | None = None,
    *,
    trajectory: Path | None = None,
    intrinsics: Path | None = None,
    to_world: str | Path | None = None,
    box: Path | None = None,
    unseen: Path | None = None,
    masks: Path | None = None,
    cameras_wanted: bool = True,
) -> SceneGeometry:
    """What the files say; a file that is named goes before what `folder` holds.

    Args:
        folder: of a scene.
        trajectory: a `traj.txt`; where no cameras are wanted, a camera log of Tanks and Temples.
        intrinsics: a `cam_params.json`.
        to_world: a file with a 4x4 matrix (`meta_data.json`, `cameras.npz` or 16 numbers), or "identity".
        box: a JSON file with the box that the crop enlarges.
        masks: a folder with `cameras.npz` and `mask/`, for DTU's mask culling.
        unseen: a .npy file with points [U, 3] of the truth that no camera saw.
        cameras_wanted: whether to read cameras at all.

    Raises:
        UserError: a file that cannot be read or does not hold what it should.
    """
    folder = None if folder is None else Path(folder)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--scene {folder}: no such folder")
    if to_world is None and folder is not None:
        to_world = next((p for name in ("meta_data.json", "cameras.npz") if (p := folder / name).is_file()), None)
    if str(to_world) == "identity":
        to_world = None
    if cameras_wanted and folder is not None:
        trajectory, intrinsics = _camera_files(folder, trajectory, intrinsics)
    frusta = read_frusta(trajectory, intrinsics) if cameras_wanted and trajectory is not None else None
    origin = {"to_world": to_world, "box": box, "unseen": unseen, "masks": masks}
    if frusta is not None:
        origin |= {"trajectory": trajectory, "intrinsics": intrinsics or "Replica's, as published"}
    return SceneGeometry(
        to_world=None if to_world is None else read_matrix(Path(to_world)),
        frusta=frusta,
        box=None if box is None else _read_box(box),
        unseen=None if unseen is None else _read_points(unseen),
        folder=folder,
        camera_log=None if cameras_wanted else trajectory,
        masked_views=None if masks is None else read_masked_views(masks),
        origin={name: str(source) for name, source in origin.items() if source is not None},
    )


def _camera_files(folder: Path, trajectory: Path | None, intrinsics: Path | None) -> tuple[Path, Path | None]:
    """The trajectory and intrinsics that were named, else those that the scene's folder holds."""
    if trajectory is None and not (folder / "traj.txt").is_file():
        raise UserError(f"--scene {folder}: holds no traj.txt; expected one as Replica/room0 is, or --trajectory")
    known = (folder / "cam_params.json", folder.parent / "cam_params.json")
    return trajectory or folder / "traj.txt", intrinsics or next((path for path in known if path.is_file()), None)


def _read_box(path: Path) -> Box:
    value = read_json(path)
    return read_box(value if isinstance(value, dict) else {}, path)


def read_masked_views(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Projections [C, 3, 4] and masks [C, H, W] of a DTU scan as IDR and NeuS have it: `cameras.npz` (`world_mat_i`)
    and `mask/`: by the numbers in the pictures' names (000012.png, 000012_rgb.png), or one per camera in order.

    Raises:
        UserError: files are missing, do not fit each other, or differ in size.
    """
    from PIL import Image

    names = ("cameras.npz", "cameras_sphere.npz")
    cameras = next((path for name in names if (path := folder / name).is_file()), folder / names[0])
    files = sorted((folder / "mask").glob("*.png"), key=lambda path: (len(path.stem), path.stem))
    if not files:
        raise UserError(f"--masks {folder}: no mask/*.png in it; expected a DTU scan as IDR and NeuS have it")
    try:
        with np.load(cameras, allow_pickle=False) as arrays:
            numbers = _mask_numbers(
                files, {int(name[10:]) for name in arrays if re.fullmatch(r"world_mat_\d{1,9}", name)}
            )
            matrices = np.stack([arrays[f"world_mat_{number}"][:3] for number in numbers]).astype(np.float64)
        pictures = []
        for path in files:
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.convert("L")) > 127)
        return matrices, np.stack(pictures)
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise UserError(
            f"--masks {folder}: expected world_mat_0, world_mat_1, ... in {cameras.name}, masks of one size; {error!r}"
        ) from error


def _mask_numbers(files: Sequence[Path], cameras: set[int]) -> list[int]:
    """The camera's number of every mask: the one in its name, or its place where there are as many of both."""
    numbers = [number_in_name(path.name) for path in files]
    if len(set(numbers)) == len(files) and set(numbers) <= cameras:
        return numbers
    if len(files) != len(cameras):
        raise UserError(
            f"{files[0].parent}: {len(files)} masks for {len(cameras)} cameras, and the names are not the cameras' "
            "numbers; expected names such as 000012.png, or a mask for every camera"
        )
    return sorted(cameras)


def _read_points(path: Path) -> np.ndarray:
    try:
        points = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected an array [U, 3] in .npy ({error})") from error
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise UserError(f"{path}: an array of shape {points.shape}, expected finite points [U, 3]")
    return points


def read_matrix(path: Path) -> np.ndarray:
    """[4, 4] from SDFStudio's `meta_data.json` (`worldtogt`), a `cameras.npz` (`scale_mat_0`) or a text of 16 numbers.

    Raises:
        UserError: there is no such matrix in it.
    """
    try:
        if path.suffix == ".json":
            value = read_json(path)
            found = value["worldtogt"] if isinstance(value, dict) else value
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = arrays["scale_mat_0"]
        else:
            found = path.read_text(encoding="utf-8").replace(",", " ").split()
        matrix = np.array(found, np.float64).reshape(4, 4)
    except (OSError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise UserError(
            f"{path}: expected a 4x4 matrix: 'worldtogt' in JSON, 'scale_mat_0' in .npz, or 16 numbers; {error!r}"
        ) from error
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise UserError(f"{path}: the matrix must be finite, with the last row 0 0 0 1; it is {matrix.tolist()}")
    return matrix
