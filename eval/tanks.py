"""The Tanks and Temples protocol: similarity alignment by cameras and ICP, a crop volume, voxels of half the threshold.

A scene's folder holds, under the scene's name S: `S.ply` (the truth, a cloud), `S.json` (the crop volume),
`S_trans.txt` (4x4 from the reference cameras' frame to the truth's), `S_COLMAP_SfM.log` (the reference cameras). A
camera log has, per pose, a line of three integers and four of a camera-to-world matrix. A log with a pose for every
frame of the scene's video is reduced to the reference's by `S_mapping_reference.txt`.

The distances are between voxels: precision and recall are shares of them nearer than the scene's threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.surface import Surface, to_open3d
from nfc_splat.open3d_loader import load_open3d

# Metres, by scene of the training set; the truth of the other sets is not public.
THRESHOLDS = {
    "Barn": 0.01,
    "Caterpillar": 0.005,
    "Church": 0.025,
    "Courthouse": 0.025,
    "Ignatius": 0.003,
    "Meetingroom": 0.01,
    "Truck": 0.005,
}
MOST_POINTS = 4_000_000
# Voxel size and farthest correspondence of each round of ICP, in thresholds; None keeps every k-th point instead.
ICP_ROUNDS: Sequence[tuple[float | None, float]] = ((1.0, 80.0), (0.5, 20.0), (None, 2.0))
ICP_ITERATIONS = 20
RANSAC_DISTANCE, RANSAC_POINTS, RANSAC_ITERATIONS = 0.2, 6, 100_000


@dataclass(frozen=True, eq=False)
class TanksScene:
    """What a scene's folder says.

    Attributes:
        name: of the scene.
        threshold: metres.
        volume: open3d's SelectionPolygonVolume, in the truth's frame.
        to_gt: [4, 4] from the reference cameras' frame to the truth's.
        reference: [C, 3] centres of the reference cameras, in their frame.
        mapping: the file that says which frames of the video these are; read where it is needed.
    """

    name: str
    threshold: float
    volume: Any
    to_gt: np.ndarray
    reference: np.ndarray
    mapping: Path


def read_tanks_scene(folder: Path, threshold: float | None = None) -> TanksScene:
    """Read the four files' facts.

    Raises:
        UserError: a file is missing or is not what it should be; a scene without a known threshold.
    """
    name = Path(folder).resolve().name
    if threshold is None and name not in THRESHOLDS:
        raise UserError(f"--scene {folder}: {name!r} is none of {', '.join(THRESHOLDS)}; give its --threshold")
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the crop volume of the scene")
    volume = load_open3d().visualization.read_selection_polygon_volume(str(path))
    if len(volume.bounding_polygon) < 3:
        raise UserError(f"{path}: holds no polygon; expected open3d's SelectionPolygonVolume")
    try:
        words = (Path(folder) / f"{name}_trans.txt").read_text(encoding="utf-8").split()
        to_gt = np.array(words, np.float64).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise UserError(f"{Path(folder) / f'{name}_trans.txt'}: expected 16 numbers; {error}") from error
    reference = read_camera_log(Path(folder) / f"{name}_COLMAP_SfM.log")
    mapping = Path(folder) / f"{name}_mapping_reference.txt"
    return TanksScene(name, threshold or THRESHOLDS[name], volume, to_gt, reference, mapping)


def read_camera_log(path: Path) -> np.ndarray:
    """[C, 3] camera centres of a log.

    Raises:
        UserError: not such a file.
    """
    try:
        words = np.array(path.read_text(encoding="utf-8").split(), np.float64)
        poses = words.reshape(-1, 19)[:, 3:].reshape(-1, 4, 4)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected, per pose, a line of 3 integers and 4 lines of 4 numbers; {error}"
        ) from error
    if len(poses) == 0 or not np.isfinite(poses).all():
        raise UserError(f"{path}: {len(poses)} poses, expected finite ones")
    return poses[:, :3, 3]


def read_mapping(path: Path, count: int, frames: int) -> np.ndarray:
    """[C] int64, which of `frames` poses of a video's camera log are those of the `count` reference cameras.

    The file has the number of reference cameras, that of the video's frames, and for each camera its own number and the
    frame's, which counts from 1.

    Raises:
        UserError: not such a file, or of other cameras or another log.
    """
    try:
        words = np.array(path.read_text(encoding="utf-8").split(), np.int64)
        rows = words[2:].reshape(-1, 2)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: expected two counts, of cameras and of frames, and a line of 2 integers for each camera; {error}"
        ) from error
    if len(words) < 2 or not words[0] == len(rows) == count:
        stated = f"states {words[0]} cameras and lists {len(rows)}" if len(words) else "is empty"
        raise UserError(f"{path}: {stated}; expected {count}, as the reference log has")
    chosen = rows[:, 1]
    if chosen.min() < 1 or chosen.max() > frames:
        raise UserError(
            f"{path}: lists frames {chosen.min()} to {chosen.max()}, expected 1 to {frames}, the poses of --trajectory"
        )
    return chosen - 1


# ------------------------------------------------------------------------------------------------ the steps


def crop_to_volume(cloud: Surface, volume: Any) -> Surface:
    """The points inside a SelectionPolygonVolume."""
    return Surface(np.array(volume.crop_point_cloud(to_open3d(cloud)).points))


def voxel_downsample(cloud: Surface, size: float) -> Surface:
    """One point per voxel of that size: the mean of its points."""
    return Surface(np.array(to_open3d(cloud).voxel_down_sample(size).points))


def thin_out(cloud: Surface, most: int = MOST_POINTS) -> Surface:
    """Every k-th point, at most about `most`."""
    step = max(1, round(len(cloud.vertices) / most))
    return Surface(cloud.vertices[::step])


def as_in_reference(centers: np.ndarray, scene: TanksScene) -> np.ndarray:
    """[C, 3] of the camera centres of a log [L, 3] those of the reference's images, in their order.

    Raises:
        UserError: fewer than the reference has, or more and the mapping does not fit them.
    """
    count = len(scene.reference)
    if len(centers) > count and scene.mapping.is_file():
        return centers[read_mapping(scene.mapping, count, len(centers))]
    if len(centers) != count:
        video = f"; a log of all frames of the video needs {scene.mapping}" if len(centers) > count else ""
        raise UserError(
            f"--trajectory: {len(centers)} cameras, the reference of {scene.name} has {count}; give the log with one "
            f"pose per image, in the reference's order{video}"
        )
    return centers


def align_cameras(centers: np.ndarray, scene: TanksScene) -> np.ndarray:
    """[4, 4] similarity from the prediction's frame to the truth's, by RANSAC on camera centres [L, 3] of a log.

    Raises:
        UserError: the log's cameras are not the reference's (see `as_in_reference`), or do not agree with them.
    """
    centers = as_in_reference(centers, scene)
    open3d = load_open3d()
    registration = open3d.pipelines.registration
    target = scene.reference @ scene.to_gt[:3, :3].T + scene.to_gt[:3, 3]
    pairs = open3d.utility.Vector2iVector(np.repeat(np.arange(len(centers)), 2).reshape(-1, 2).astype(np.int32))
    open3d.utility.random.seed(0)
    found = registration.registration_ransac_based_on_correspondence(
        to_open3d(Surface(centers)),
        to_open3d(Surface(target)),
        pairs,
        RANSAC_DISTANCE,
        registration.TransformationEstimationPointToPoint(True),
        RANSAC_POINTS,
        [],
        registration.RANSACConvergenceCriteria(RANSAC_ITERATIONS, 0.999),
    )
    if found.fitness == 0:
        raise UserError("--trajectory: its cameras cannot be aligned with the reference's; are they of this scene?")
    return np.array(found.transformation)


def refine_by_icp(pred: Surface, gt: Surface, start: np.ndarray, scene: TanksScene) -> tuple[np.ndarray, list[dict]]:
    """The similarity after three rounds of ICP with scale, and a record of each round; fewer where the crop volume
    holds nothing of the prediction any more.

    Raises:
        UserError: nothing of the truth is in the crop volume.
    """
    registration = load_open3d().pipelines.registration
    matrix, rounds = start, []
    truth = crop_to_volume(gt, scene.volume)
    if truth.is_empty:
        raise UserError(f"the crop volume of {scene.name} holds nothing of the truth; check its frame")
    for voxels, farthest in ICP_ROUNDS:
        moved = Surface(pred.vertices @ matrix[:3, :3].T + matrix[:3, 3])
        clouds = [crop_to_volume(moved, scene.volume), truth]
        if clouds[0].is_empty:
            break
        if voxels is None:
            clouds = [thin_out(cloud) for cloud in clouds]
        else:
            clouds = [voxel_downsample(cloud, voxels * scene.threshold) for cloud in clouds]
        found = registration.registration_icp(
            *(to_open3d(cloud) for cloud in clouds),
            farthest * scene.threshold,
            np.eye(4),
            registration.TransformationEstimationPointToPoint(True),
            registration.ICPConvergenceCriteria(1e-6, 1e-6, ICP_ITERATIONS),
        )
        matrix = np.array(found.transformation) @ matrix
        rounds.append({"farthest": farthest * scene.threshold, "inliers": found.fitness, "rmse": found.inlier_rmse})
    return matrix, rounds


def align_and_crop(
    pred: Surface, gt: Surface, scene: TanksScene, start: np.ndarray, how: str
) -> tuple[Surface, Surface, dict[str, Any]]:
    """Both clouds as they are compared, and a record of the alignment. The prediction's may be empty.

    Args:
        pred: a cloud, dense.
        gt: a cloud.
        scene: its facts.
        start: [4, 4] from the prediction's frame to about the truth's.
        how: where `start` is from, for the record.

    Raises:
        UserError: the crop volume holds nothing of the truth.
    """
    matrix, rounds = refine_by_icp(pred, gt, start, scene)
    moved = Surface(pred.vertices @ matrix[:3, :3].T + matrix[:3, 3])
    size = 0.5 * scene.threshold
    clouds = [voxel_downsample(crop_to_volume(cloud, scene.volume), size) for cloud in (moved, gt)]
    last = rounds[-1] if rounds else {"inliers": 0.0, "rmse": None}
    record = {
        "method": f"similarity: {how}, then {len(rounds)} rounds of point-to-point ICP with scale",
        "matrix": matrix.tolist(),
        "scale": float(np.cbrt(np.linalg.det(matrix[:3, :3]))),
        "rounds": rounds,
        "inliers": last["inliers"],
        "inlier_rmse": last["rmse"],
        "voxel": size,
    }
    return clouds[0], clouds[1], record
