"""From what a reader found to what can be loaded: missing files, poses, sizes, downscaling.

Every step either passes, says in one sentence what it changed, or raises a `UserError`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nfc_splat.cameras import downscaled_size
from nfc_splat.data.capture import MAX_COORDINATE, MAX_FRAMES, Capture, Frame, Lens, naming, reduced_folder
from nfc_splat.data.config import DataConfig
from nfc_splat.data.images import read_size
from nfc_splat.data.parsing import IMAGE_SUFFIXES, is_file, scene_path
from nfc_splat.errors import UserError

MIN_SIDE = 8
MAX_REJECTED_POSES = 0.1
# How far a rotation's columns may be from orthonormal: matrices written with three decimals pass, scaled ones do not.
ROTATION_TOLERANCE = 1e-2
# How many times smaller the images in a folder are, by its name.
FACTOR = re.compile(r"(?<![0-9])([2-9]|[1-9][0-9]{1,5})x?$")


@dataclass(frozen=True)
class View:
    """A frame whose file exists, with intrinsics `lens` for the pixels of that file and the size wanted.

    `stated` is the size that the scene's own intrinsics are for; masks may have it too. `mask` says which pixels count,
    `foreground` which show the object.
    """

    frame: Frame
    path: Path
    lens: Lens
    stated: tuple[int, int]
    width: int
    height: int
    mask: Path | None
    foreground: Path | None


def prepare_views(root: Path, capture: Capture, config: DataConfig) -> tuple[list[View], str]:
    """Check `capture` and turn its frames into views; returns them and the resampler ("none", "area", "images_4").

    Appends to `capture.notices`.
    """
    if len(capture.frames) > MAX_FRAMES:
        raise UserError(f"{capture.source}: {len(capture.frames)} frames, expected at most {MAX_FRAMES}")
    frames, reduced = _choose_files(root, capture, config)
    frames = _drop_missing(frames, capture, config)
    frames = _drop_bad_poses(frames, capture)
    _check_masks([frame for frame, _ in frames], capture, config)
    views: list[View] = []
    factors: set[str] = set()
    for frame, path in frames:
        lens, stated = _fit_lens(frame, path, config, reduced)
        if stated != (lens.width, lens.height) and not reduced:
            factors.add(f"{lens.width}x{lens.height} images with intrinsics for {stated[0]}x{stated[1]}")
        width, height = (lens.width, lens.height) if reduced else _reduced_size(lens, config.downscale)
        if min(width, height) < MIN_SIDE:
            raise UserError(f"{path}: {width}x{height} after --downscale, expected at least {MIN_SIDE} pixels a side")
        mask = frame.foreground if config.ignore_background else frame.mask
        views.append(View(frame, path, lens, stated, width, height, mask, frame.foreground))
    _check_shared_intrinsics(views)
    for factor in sorted(factors):
        capture.notices.append(f"Warning: the scene has {factor}; the intrinsics were scaled to the images.")
    if reduced:
        views = [replace(view, mask=_reduced_mask(root, view, config)) for view in views]
    if reduced:
        resampler = reduced_folder(frames[0][0].folder, config.downscale).name
    else:
        resampler = "area" if config.downscale > 1 else "none"
    _report_scaling(resampler, config, views, capture)
    return views, resampler


def _choose_files(root: Path, capture: Capture, config: DataConfig) -> tuple[list[tuple[Frame, Path]], bool]:
    """The file to load for every frame, and whether those are ready-made reductions (`images_N`)."""
    own = [(frame, frame.image) for frame in capture.frames]
    if config.downscale == 1 or any(frame.folder is None for frame in capture.frames):
        return own, False
    folders = {frame.folder for frame in capture.frames}
    if not all(reduced_folder(folder, config.downscale).is_dir() for folder in folders):
        return own, False
    ready = [(frame, _reduced_file(root, frame, config)) for frame in capture.frames]
    lacking = [frame.name for frame, path in ready if path is None and is_file(frame.image)]
    if lacking:
        capture.notices.append(
            f"Warning: the folder of images reduced {config.downscale} times lacks {naming(lacking)}, so all images "
            "are reduced in memory instead."
        )
        return own, False
    return [(frame, path or frame.image) for frame, path in ready], True


def _reduced_file(root: Path, frame: Frame, config: DataConfig) -> Path | None:
    """The frame's image in `images_N`, possibly in another format."""
    folder = reduced_folder(frame.folder, config.downscale)
    below = Path(frame.below)
    for candidate in (below, *(below.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)):
        path = scene_path(root, str(folder / candidate), allow_external=config.allow_external_paths, source=folder)
        if is_file(path):
            return path
    return None


def _reduced_mask(root: Path, view: View, config: DataConfig) -> Path | None:
    """The mask in `masks_N` when there is one, else the full-size mask, whose size is checked when it is decoded."""
    mask = view.frame.mask
    if mask is None or mask.parent == root:
        return mask
    folder = reduced_folder(mask.parent, config.downscale)
    path = scene_path(root, str(folder / mask.name), allow_external=config.allow_external_paths, source=folder)
    return path if is_file(path) else mask


def _drop_missing(frames: list[tuple[Frame, Path]], capture: Capture, config: DataConfig) -> list[tuple[Frame, Path]]:
    """Leave out frames without a file if they are at most half."""
    present = [(frame, path) for frame, path in frames if is_file(path)]
    missing = [frame.name for frame, path in frames if not is_file(path)]
    if not missing:
        return present
    summary = f"{len(missing)} of {len(frames)} images have no file: {naming(missing)}"
    if not present:
        raise UserError(f"{capture.source}: {summary}; put the images where the file says{_nearby(frames[0][0])}")
    if 2 * len(missing) > len(frames) and not config.allow_missing:
        raise UserError(
            f"{capture.source}: {summary}; restore them, or pass --allow-missing to go on with the other {len(present)}"
        )
    capture.notices.append(f"Warning: {summary}; they are left out.")
    return present


def _check_masks(frames: Sequence[Frame], capture: Capture, config: DataConfig) -> None:
    """Masks that are listed exist; where they are to be obeyed, every image has one."""
    lost = [f.name for f in frames if any(m is not None and not is_file(m) for m in (f.mask, f.foreground))]
    if lost:
        raise UserError(
            f"{capture.source}: masks are listed for {naming(lost)} but have no file; restore them, or strike them out"
        )
    without = [frame.name for frame in frames if frame.foreground is None]
    if config.ignore_background and without:
        raise UserError(
            f"{capture.source}: --ignore-background needs a foreground mask for every image; "
            f"there is none for {naming(without)}; add them, or leave the flag out"
        )
    if len(without) == len(frames):
        return
    if without:
        capture.notices.append(f"Warning: there is no foreground mask for {naming(without)}.")
    capture.notices.append(
        "What lies outside the foreground masks is ignored."
        if config.ignore_background
        else "The scene has foreground masks; every pixel is measured all the same (see --ignore-background)."
    )


def _nearby(frame: Frame) -> str:
    """A pointer to reduced copies when the full-size folder is gone."""
    if frame.folder is None or frame.folder.is_dir() or not frame.folder.parent.is_dir():
        return ""
    ready = []
    for place in frame.folder.parent.iterdir():
        factor = FACTOR.search(place.name)
        if factor and place == reduced_folder(frame.folder, int(factor[1])) and place.is_dir():
            ready.append((int(factor[1]), place.name))
    return f" (there is {min(ready)[1]}: pass --downscale {min(ready)[0]})" if ready else ""


def _drop_bad_poses(frames: list[tuple[Frame, Path]], capture: Capture) -> list[tuple[Frame, Path]]:
    """Leave out frames whose pose is not a rotation and a finite position; more than a tenth is an error."""
    faults = {id(frame): fault for frame, _ in frames if (fault := pose_fault(frame.camera_to_world))}
    if not faults:
        return [(_orthonormal(frame), path) for frame, path in frames]
    bad = [frame for frame, _ in frames if id(frame) in faults]
    summary = (
        f"{len(bad)} of {len(frames)} poses are unusable: {naming([frame.name for frame in bad])}; "
        f"the first {faults[id(bad[0])]}"
    )
    if len(bad) > MAX_REJECTED_POSES * len(frames):
        raise UserError(f"{capture.source}: {summary}; at most a tenth may be, correct the file")
    capture.notices.append(f"Warning: {summary}. They are left out.")
    return [(_orthonormal(frame), path) for frame, path in frames if id(frame) not in faults]


def pose_fault(pose: np.ndarray) -> str | None:
    """What is wrong with a camera-to-world matrix [4, 4], as the end of a sentence, or None."""
    if not np.isfinite(pose).all():
        return "holds NaN or Inf"
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6:
        return f"has the last row {pose[3].tolist()}, expected 0 0 0 1"
    if np.abs(pose[:3, 3]).max() > MAX_COORDINATE:
        return f"lies {np.abs(pose[:3, 3]).max():.3g} units away"
    rotation = pose[:3, :3]
    if np.abs(rotation).max() > 1e6:
        return "has entries beyond a million where a rotation is expected"
    determinant = np.linalg.det(rotation)
    if determinant < 0:
        return f"is left-handed (determinant {determinant:.3g}); a rotation has +1"
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > ROTATION_TOLERANCE:
        return f"has no rotation in its upper left 3x3 (determinant {determinant:.3g}); remove scale and shear"
    return None


def _orthonormal(frame: Frame) -> Frame:
    """The nearest exact rotation, so that inverses and norms hold to rounding."""
    u, _, vt = np.linalg.svd(frame.camera_to_world[:3, :3])
    pose = frame.camera_to_world.copy()
    pose[:3, :3] = u @ vt
    return replace(frame, camera_to_world=pose)


def _fit_lens(frame: Frame, path: Path, config: DataConfig, reduced: bool) -> tuple[Lens, tuple[int, int]]:
    """The lens for the pixels of `path`, and the size that the scene's intrinsics are for."""
    width, height = read_size(path, config.max_pixels)
    if reduced and frame.lens.width is None:
        full = read_size(frame.image, config.max_pixels) if is_file(frame.image) else None
        full = full or (width * config.downscale, height * config.downscale)
        lens = frame.lens.completed(*full, frame.name)
    else:
        lens = frame.lens.completed(width, height, frame.name)
    stated = (lens.width, lens.height)
    if _same_picture(stated, (width, height), config.downscale if reduced else None):
        return lens.scaled(width, height), stated
    swapped = "; width and height are swapped, is it rotated?" if stated == (height, width) else ""
    wanted = f"{lens.width}x{lens.height}" + (f" / {config.downscale}" if reduced else "")
    raise UserError(
        f"{path}: {width}x{height}, but the intrinsics in {lens.origin} are for {wanted}{swapped}; "
        "correct the image size or the intrinsics"
    )


def _check_shared_intrinsics(views: Sequence[View]) -> None:
    """The same intrinsics in pixels, with no size stated, do not fit images of several sizes."""
    first: dict[tuple[float | None, ...], View] = {}
    for view in views:
        lens = view.frame.lens
        if lens.width is not None or lens.fx is None or lens.cx is None:
            continue
        other = first.setdefault((lens.fx, lens.fy, lens.cx, lens.cy), view)
        if other.stated != view.stated:
            sizes = ["x".join(map(str, one.stated)) for one in (view, other)]
            raise UserError(
                f"{view.path}: {sizes[0]}, but {other.frame.name!r} is {sizes[1]} with the same intrinsics "
                f"({lens.origin}); bring the images to one size, or give each its own intrinsics"
            )


def _same_picture(stated: tuple[int, int], real: tuple[int, int], factor: int | None) -> bool:
    """Whether `real` is `stated` divided by `factor` (by any whole number if None; or, exactly, multiplied).

    A division may be rounded either way in each direction.
    """
    k = factor or max(1, round(stated[0] / real[0]))
    if all(abs(s / k - r) < (1 if k > 1 else 1e-9) for s, r in zip(stated, real, strict=True)):
        return True
    k = round(real[0] / stated[0])
    return factor is None and all(s * k == r for s, r in zip(stated, real, strict=True))


def _reduced_size(lens: Lens, factor: int) -> tuple[int, int]:
    width, height = downscaled_size(torch.tensor([lens.width, lens.height]), factor).tolist()
    return width, height


def _report_scaling(resampler: str, config: DataConfig, views: Sequence[View], capture: Capture) -> None:
    if config.downscale == 1:
        return
    size = f"{views[0].width}x{views[0].height}"
    how = "by an area filter in memory" if resampler == "area" else f"by using the folder {resampler}"
    capture.notices.append(f"Images are reduced {config.downscale} times to {size} {how}.")
