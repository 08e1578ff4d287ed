"""A scene folder, loaded: `load_scene` gives a `Scene` of `Split`s.

Symbols: H rows, W columns, M points. Nothing is moved or scaled: cameras and points are in the frame and units of the
files.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfc_splat.cameras import Cameras
from nfc_splat.data.assemble import build_cameras, normalized_times, suspicions
from nfc_splat.data.capture import Capture, Collider, counted
from nfc_splat.data.config import DataConfig
from nfc_splat.data.detect import detect_format, missing_parts, scene_root
from nfc_splat.data.noise import NoisyStore, composited
from nfc_splat.data.points import read_points
from nfc_splat.data.prepare import View, prepare_views
from nfc_splat.data.splits import assign_splits, fewer_views
from nfc_splat.data.store import ImageStore
from nfc_splat.errors import UserError

# Formats of objects cut out, whose published results are over white.
WHITE = ("blender", "nsvf")


class Split:
    """Some views of a scene, in a fixed order.

    Attributes:
        names: what the images are called, with `/` and extension.
        cameras: one per image, on the CPU, float32.
    """

    def __init__(self, names: list[str], cameras: Cameras, store: ImageStore | NoisyStore, indices: list[int]):
        self.names, self.cameras = names, cameras
        self._store, self._indices = store, indices

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Tensor:
        """uint8 [H, W, 3], or [H, W, 4] with straight alpha; kept in memory by the scene, not to be written to."""
        return self._store.image(self._indices[index])

    def target(self, index: int, background: Tensor) -> Tensor:
        """float32 [H, W, 3] in [0, 1], composited over `background` [3] where the image is transparent."""
        return composited(self.image(index), background)

    def mask(self, index: int) -> Tensor | None:
        """float32 [H, W], 1 = keep, 0 = ignore, between where the image was resampled; None without a mask."""
        mask = self._store.mask(self._indices[index])
        return None if mask is None else mask.float() / 255

    def foreground(self, index: int) -> Tensor | None:
        """float32 [H, W], 1 = shows the object, 0 = what lies behind it; None where the scene does not say.

        Unlike `mask` it does not say what counts: the background is part of the photograph.
        """
        foreground = self._store.foreground(self._indices[index])
        return None if foreground is None else foreground.float() / 255


@dataclass
class Scene:
    """A loaded scene.

    Attributes:
        root: the folder.
        name: its name.
        format: which reader read it.
        reason: why, as a sentence.
        splits: "train", "test" (possibly empty) and, if the scene has one, "val".
        points: [M, 3] float32 initial points in world units, or None.
        colors: [M, 3] float32 in [0, 1], or None.
        background: [3] what transparent images are composited over, and what lies behind the scene.
        has_alpha: whether training images have transparent pixels.
        cut_out: whether the images show an object alone: they are transparent around it, or their format says so.
        object_masks: whether training images have masks of the object, outside of which pixels count all the same.
        resampler: what reduced the images: "none", "area", or the folder used, such as "images_4".
        undistorted: whether a lens was taken away.
        world_to_gt: [4, 4] float64 from this frame to the ground truth's, or None.
        principal_point_shift: what the reader added to cx and cy; subtract it to write cameras for the format's tools.
        near_far: depth range that the files state, or that the format's own tools take from its cameras; or None.
        bounds: [2, 3] float32, lowest and highest corner of the part of the scene that is wanted, or None.
        sphere: [4] float32, centre and radius of a sphere around the part that is wanted, or None. A method that needs
            the unit sphere (NeuS) normalises points by (x - centre) / radius and brings its meshes back by the inverse.
        collider: what SDFStudio's methods end rays at: "near_far", "box" (`bounds`) or "sphere"; None in other formats.
        stated: digest of what the files state of cameras, images and points (`Capture.digest`).
        notices: sentences for the user, in order; those that begin with "Warning:" deserve attention.
    """

    root: Path
    name: str
    format: str
    reason: str
    splits: dict[str, Split]
    points: Tensor | None
    colors: Tensor | None
    background: Tensor
    has_alpha: bool
    cut_out: bool
    object_masks: bool
    resampler: str
    undistorted: bool
    world_to_gt: Tensor | None
    principal_point_shift: float
    near_far: tuple[float, float] | None
    bounds: Tensor | None
    sphere: Tensor | None
    collider: Collider | None
    stated: str
    notices: list[str]


def load_scene(path: Path | str, config: DataConfig | None = None, *, undistort: bool) -> Scene:
    """Load the scene at `path`; every image is decoded once, so that a broken one is reported now.

    Args:
        path: a scene folder, or a file in it such as transforms.json.
        config: how to read it; `DataConfig()` by default.
        undistort: take away lens distortion, for rasterised methods; otherwise the cameras carry it.

    Raises:
        UserError: whatever is wrong with the folder, in one line that names the file.
    """
    config = config or DataConfig()
    config.check()
    try:
        return _load(Path(path), config, undistort)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from error


def _load(path: Path, config: DataConfig, undistort: bool) -> Scene:
    root, format, reason = _identify(path, config)
    capture: Capture = importlib.import_module(f"nfc_splat.data.{format}").read(root, config)
    if config.points is not None:
        cloud = read_points(config.points)
        capture.points, capture.colors = cloud.points, cloud.colors
    notices, stated = capture.notices, capture.digest()
    views, resampler = prepare_views(root, capture, config)
    frames = [view.frame for view in views]
    chosen, rule = assign_splits(
        frames, test_every=config.test_every, default_every=capture.hold_out_every, by_name=capture.by_name
    )
    if not chosen["train"]:
        raise UserError(f"{capture.source}: no image is left for training; check the split and --test-every")
    notices.append(rule)
    chosen["train"], rule = fewer_views(chosen["train"], config)
    if rule is not None:
        notices.append(rule)
    cameras, jobs = build_cameras(views, normalized_times(frames, config, notices), undistort)
    undistorted = undistort and any(job.remap is not None for job in jobs)
    notices += _describe_lenses(views, undistort)
    notices += suspicions(cameras, jobs)
    store = ImageStore(jobs, int(config.image_cache_gb * 1e9), config.max_pixels)
    notices += store.check_all()
    notices.append(_describe_memory(store, config))
    background, has_alpha = _background(store, format, config, notices)
    stores = {"train": _spoiled(store, background, config, notices)}
    splits = {
        name: Split([frames[i].name for i in indices], cameras[indices], stores.get(name, store), indices)
        for name, indices in chosen.items()
    }
    points, colors = _initial_points(capture, [views[i] for i in chosen["train"]], splits["train"], config)
    return Scene(
        root=root,
        name=root.name,
        format=format,
        reason=reason,
        splits=splits,
        points=points,
        colors=colors,
        background=background,
        has_alpha=has_alpha and not config.train_noise,
        cut_out=has_alpha or capture.cut_out,
        object_masks=not config.ignore_background and any(frames[i].foreground for i in chosen["train"]),
        resampler=resampler,
        undistorted=undistorted,
        world_to_gt=None if capture.world_to_gt is None else torch.from_numpy(capture.world_to_gt),
        principal_point_shift=capture.principal_point_shift,
        near_far=capture.near_far,
        bounds=None if capture.bounds is None else torch.from_numpy(capture.bounds).float(),
        sphere=None if capture.sphere is None else torch.from_numpy(capture.sphere).float(),
        collider=capture.collider,
        stated=stated,
        notices=notices,
    )


def _identify(path: Path, config: DataConfig) -> tuple[Path, str, str]:
    """Root, format and reason."""
    root = scene_root(path, config.format)
    if config.format == "auto":
        format, reason, _ = detect_format(path)
        return root, format, reason
    if missing := missing_parts(root, config.format):
        raise UserError(f"{root}: --format {config.format} does not fit: {missing}")
    return root, config.format, f"{root.name} is read as a {config.format} scene because --format says so."


def _describe_lenses(views: list[View], undistort: bool) -> list[str]:
    distorted = [view for view in views if view.lens.distorted]
    if not distorted:
        return []
    models = " and ".join(sorted({view.lens.model for view in distorted}))
    if undistort:
        return [
            f"{counted(len(distorted), 'image')} with {models} distortion are undistorted: same size, cut to the "
            "largest rectangle without blank borders."
        ]
    return [f"{counted(len(distorted), 'image')} keep their {models} distortion; rays follow it exactly."]


def _describe_memory(store: ImageStore, config: DataConfig) -> str:
    total = sum(
        job.width * job.height * (channels + len(job.masks))
        for job, channels in zip(store.jobs, store.channels, strict=True)
    )
    line = f"{counted(len(store.jobs), 'image')} take {total / 1e6:.1f} MB decoded"
    if total <= store.budget:
        return f"{line} and stay in memory."
    return (
        f"{line}, more than --image-cache-gb {config.image_cache_gb:g}: "
        f"{store.kept_bytes / 1e6:.1f} MB stay in memory, the rest is decoded again when needed."
    )


def _background(store: ImageStore, format: str, config: DataConfig, notices: list[str]) -> tuple[Tensor, bool]:
    """The background [3] and whether any image is transparent somewhere."""
    name = config.background
    if name == "auto":
        name = "white" if format in WHITE else "black"
    has_alpha = 4 in store.channels
    if has_alpha:
        notices.append(f"Images with transparency are composited over {name} (straight alpha).")
    return torch.full((3,), 1.0 if name == "white" else 0.0), has_alpha


def _spoiled(store: ImageStore, background: Tensor, config: DataConfig, notices: list[str]) -> ImageStore | NoisyStore:
    """Where the training images come from."""
    if not config.train_noise:
        return store
    notices.append(
        f"The training images are spoiled by noise of standard deviation {config.train_noise:g} (--train-noise)."
    )
    return NoisyStore(store, config.train_noise, background)


def _initial_points(
    capture: Capture, views: list[View], train: Split, config: DataConfig
) -> tuple[Tensor | None, Tensor | None]:
    """The scene's points, else points from the training views' depth images, else none."""
    points, colors = capture.points, capture.colors
    if points is None and capture.depth_scale is not None:
        from nfc_splat.data.depth import points_from_depth

        points, colors, used = points_from_depth(
            views, train.cameras, train.image, depth_scale=capture.depth_scale, max_pixels=config.max_pixels
        )
        if len(points):
            capture.notices.append(f"{len(points)} initial points come from {counted(used, 'depth image')}.")
    if points is None or not len(points):
        capture.notices.append("The scene has no initial points; methods that need some start from random ones.")
        return None, None
    if capture.points is not None:
        source = "The scene brings" if config.points is None else f"{config.points} has"
        capture.notices.append(f"{source} {counted(len(points), 'initial point')}.")
    return torch.from_numpy(np.ascontiguousarray(points)), None if colors is None else torch.from_numpy(colors)
