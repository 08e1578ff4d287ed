"""nerfstudio and instant-ngp scenes: one `transforms.json`.

Intrinsics per frame or for all (`fl_x fl_y cx cy w h`, `k1..k4 p1 p2`, `camera_model`, else `camera_angle_x`), poses
camera-to-world with OpenGL's camera axes. Poses and points are used as they stand: `applied_transform` and
`applied_scale` record what was done to both already, so neither is applied or undone here.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nfc_splat.data.capture import Capture, Frame, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.folders import scene_file
from nfc_splat.data.parsing import image_path, number, read_frames, read_object, scene_path, text
from nfc_splat.data.transforms import read_lens, read_name, read_pose
from nfc_splat.errors import UserError

IGNORED = {
    "aabb_scale": "the extent of the scene is taken from its cameras and points",
    "applied_transform": "poses and points carry it already and are used as they stand",
    "fisheye_crop_radius": "mask the border of fisheye images with `mask_path` instead",
    "orientation_override": "poses are used as they stand",
}


def read(root: Path, config: DataConfig) -> Capture:
    """Read transforms.json and the point cloud that it names."""
    path = root / "transforms.json"
    meta = read_object(scene_file(root, path.name, config))
    capture = Capture(source=path, frames=[])
    splits = _splits(meta, path)
    for index, entry in enumerate(read_frames(meta, path)):
        capture.frames.append(_read_frame(root, path, meta, entry, index, config))
    if splits:
        _assign(capture, splits)
    for key, instead in IGNORED.items():
        if key in meta:
            capture.notices.append(f"`{key}` of transforms.json is not used: {instead}.")
    _read_points(root, path, meta, config, capture)
    return capture


def _read_frame(
    root: Path, path: Path, meta: Mapping[str, Any], entry: Mapping[str, Any], index: int, config: DataConfig
) -> Frame:
    name = read_name(entry, index, path)
    where = f"{path}: frame {name[:200]!r}"
    external = config.allow_external_paths
    mask = text(entry, "mask_path", where)
    first, _, below = name.partition("/")
    in_folder = bool(below) and first not in ("", "..")
    return Frame(
        name=name,
        image=image_path(root, name, allow_external=external, source=path),
        folder=root / first if in_folder else None,
        below=below if in_folder else "",
        lens=read_lens(meta, entry, where),
        camera_to_world=read_pose(entry, where),
        mask=None if mask is None else scene_path(root, mask, allow_external=external, source=path),
        time=number(entry, "time", where),
    )


def _splits(meta: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Split by file name, from `train_filenames` and its kin; empty when the file has none."""
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        names = meta.get(f"{split}_filenames")
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: `{split}_filenames` is not a list of file names")
        for name in (name.removeprefix("./") for name in names):
            # val and test may share images; then they count as test, which numbers are taken from.
            if splits.get(name) == "train":
                raise UserError(f"{path}: {name[:200]!r} is in train_filenames and in {split}_filenames")
            splits[name] = split
    return splits


def _assign(capture: Capture, splits: dict[str, str]) -> None:
    """Give every frame its split. Without test images the validation images are the test images."""
    if "test" not in splits.values() and "val" in splits.values():
        splits = {name: "test" if split == "val" else split for name, split in splits.items()}
        capture.notices.append("transforms.json has no test_filenames; its val_filenames are the test images.")
    present = {frame.name for frame in capture.frames}
    unknown = [name for name in splits if name not in present]
    unlisted = [frame.name for frame in capture.frames if frame.name not in splits]
    if unknown:
        capture.notices.append(f"Warning: the split lists name frames that do not exist: {naming(unknown)}.")
    if unlisted:
        capture.notices.append(f"Frames that are in no split list are left out: {naming(unlisted)}.")
    capture.frames = [replace(frame, split=splits[frame.name]) for frame in capture.frames if frame.name in splits]
    if not capture.frames:
        raise UserError(f"{capture.source}: no frame is in train_filenames, val_filenames or test_filenames")


def _read_points(root: Path, path: Path, meta: Mapping[str, Any], config: DataConfig, capture: Capture) -> None:
    name = text(meta, "ply_file_path", str(path))
    if name is None:
        return
    from nfc_splat.data.ply import read_ply_points

    file = scene_path(root, name, allow_external=config.allow_external_paths, source=path)
    if not file.is_file():
        capture.notices.append(f"Warning: the point cloud {name!r} that transforms.json names does not exist.")
        return
    cloud = read_ply_points(file)
    capture.points, capture.colors = cloud.points, cloud.colors
    if cloud.dropped:
        dropped = counted(cloud.dropped, "point")
        capture.notices.append(f"Warning: {dropped} of {name!r} left out for not being finite.")
