"""From views to cameras and loading jobs: lenses kept or taken away, times, and what looks suspicious."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.data.capture import Frame, Lens, counted, naming
from nfc_splat.data.config import DataConfig
from nfc_splat.data.prepare import View
from nfc_splat.data.resample import Remap, undistorted_intrinsics
from nfc_splat.data.store import Job
from nfc_splat.errors import UserError

# How far from the middle a principal point may be without a word, as a share of the width or height. Intrinsics for
# twice the size put it at 0.5, those for half the size at 0.25.
OFF_CENTER = 0.2


def normalized_times(frames: Sequence[Frame], config: DataConfig, notices: list[str]) -> list[float] | None:
    """Times from 0 to 1 over all splits together, or None for a static scene.

    Raises:
        UserError: they shall come from the images' names, which are all the same.
    """
    if config.time_from == "names":
        return _times_from_names(frames, notices)
    timed = [frame for frame in frames if frame.time is not None]
    if not timed:
        return None
    if len(timed) < len(frames):
        first = next(frame.name for frame in frames if frame.time is None)
        notices.append(
            f"Warning: {len(frames) - len(timed)} of {len(frames)} frames have no `time`, {first!r} first, so "
            "the scene counts as static; --time-from names takes times from the order of the images' names."
        )
        return None
    times = [frame.time for frame in frames]
    low, high = min(times), max(times)
    if (low == high and 0 <= low <= 1) or (abs(low) < 1e-6 and abs(high - 1) < 1e-6):
        return [min(max(time, 0.0), 1.0) for time in times]
    if not high - low < math.inf:
        raise UserError(f"{frames[times.index(high)].name}: its time is {high:g}, another is {low:g}; correct them")
    notices.append(f"Times from {low:g} to {high:g} were mapped to 0 to 1.")
    return [(time - low) / (high - low) if high > low else 0.0 for time in times]


def _times_from_names(frames: Sequence[Frame], notices: list[str]) -> list[float]:
    """Even times from 0 to 1 in the order of the images' names, without their folders; numbers in names count as
    numbers, so that 10 follows 9."""
    stems = [PurePosixPath(frame.name).stem for frame in frames]
    order = sorted(set(stems), key=_natural)
    if len(order) < 2 and len(frames) > 1:
        raise UserError(
            f"--time-from names: all images are called {order[0][:80]!r}; expected names that differ with time"
        )
    place = {stem: index / max(1, len(order) - 1) for index, stem in enumerate(order)}
    notices.append(
        f"Times go evenly from 0 ({order[0][:80]!r}) to 1 ({order[-1][:80]!r}) in the order of "
        f"{counted(len(order), 'image name')} (--time-from names)."
    )
    return [place[stem] for stem in stems]


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers in names as numbers. Splitting puts them at the odd places, so that like is compared with like."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def build_cameras(views: Sequence[View], times: list[float] | None, undistort: bool) -> tuple[Cameras, list[Job]]:
    """Cameras of all views at the wanted sizes, and how to make each image.

    With `undistort` every camera is a pinhole camera and the jobs take the lens away; without it the cameras carry the
    lens, all in the most general model that occurs (UserError when fisheye and other lenses are mixed).
    """
    model = _common_model(views) if not undistort else "pinhole"
    remaps: dict[Lens, Remap] = {}
    jobs, Ks = [], []
    for view in views:
        K, remap = _K(view.lens), None
        if undistort and view.lens.distorted:
            # `origin` differs from frame to frame even where the numbers agree.
            key = replace(view.lens, origin="")
            if key not in remaps:
                remaps[key] = _remap(view.lens)
            remap = remaps[key]
            K = remap.K
        Ks.append(K)
        size = (view.lens.width, view.lens.height)
        goal = (view.width, view.height)
        jobs.append(Job(view.frame.name, view.path, size, view.stated, *goal, view.mask, remap, view.foreground))
    world_to_camera = [np.linalg.inv(view.frame.camera_to_world) for view in views]
    cameras = Cameras(
        viewmats=torch.tensor(np.stack(world_to_camera)),
        Ks=torch.stack(Ks),
        sizes=torch.tensor([[view.lens.width, view.lens.height] for view in views]),
        times=None if times is None else torch.tensor(times, dtype=torch.float64),
        distortion=None
        if model == "pinhole"
        else torch.tensor([v.lens.distortion for v in views], dtype=torch.float64),
        model=model,
    )
    wanted = torch.tensor([[view.width, view.height] for view in views])
    return cameras.resized(wanted).to(dtype=torch.float32), jobs


def _common_model(views: Sequence[View]) -> str:
    models = {view.lens.model if view.lens.distorted else "pinhole" for view in views}
    if "opencv_fisheye" in models and len(models) > 1:
        fisheye = next(view for view in views if view.lens.model == "opencv_fisheye")
        raise UserError(
            f"{fisheye.lens.origin}: {fisheye.frame.name!r} is a fisheye image among others that are not; "
            "undistort the images first"
        )
    return models.pop() if len(models) == 1 else "opencv"


def _K(lens: Lens) -> torch.Tensor:
    return torch.tensor([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]], dtype=torch.float64)


def _remap(lens: Lens) -> Remap:
    source = Cameras(
        viewmats=torch.eye(4, dtype=torch.float64)[None],
        Ks=_K(lens)[None],
        sizes=torch.tensor([[lens.width, lens.height]]),
        distortion=torch.tensor([lens.distortion], dtype=torch.float64),
        model=lens.model,
    )
    try:
        return Remap(source, undistorted_intrinsics(source))
    except ValueError as error:
        raise UserError(f"{lens.origin}: {error}") from error


def suspicions(cameras: Cameras, jobs: Sequence[Job]) -> list[str]:
    """What about the whole set of views deserves a sentence: few, repeated or coinciding views, and their extent."""
    notices = []
    if len(jobs) < 3:
        notices.append(f"Warning: the scene has only {counted(len(jobs), 'view')}; depth cannot be trusted.")
    uses = Counter(job.path for job in jobs)
    repeated = sorted({job.name for job in jobs if uses[job.path] > 1})
    if repeated:
        notices.append(f"Warning: the same image file is listed more than once: {naming(repeated)}.")
    centers = cameras.centers.double()
    extent = float((centers - centers.mean(0)).norm(dim=-1).max())
    if len(jobs) > 1 and extent < 1e-6 * max(1.0, float(centers.abs().max())):
        notices.append("Warning: all cameras stand in the same place, so nothing can be said about depth.")
    elif len(jobs) > 1:
        nearest = torch.cdist(centers, centers).fill_diagonal_(math.inf).amin(1).median() if len(jobs) < 3000 else None
        spacing = "" if nearest is None else f", neighbours typically {float(nearest):.3g} apart"
        notices.append(f"Cameras lie within {extent:.3g} units of their centre{spacing}.")
    return notices + _odd_principal_points(cameras, jobs)


def _odd_principal_points(cameras: Cameras, jobs: Sequence[Job]) -> list[str]:
    """Principal points outside the image, or so far from its middle that the intrinsics may be for another size."""
    relative = cameras.Ks[:, :2, 2] / cameras.sizes
    off = (relative - 0.5).abs().amax(1)
    outside = [job.name for job, at in zip(jobs, off.tolist(), strict=True) if at > 0.5]
    away = [job.name for job, at in zip(jobs, off.tolist(), strict=True) if OFF_CENTER < at <= 0.5]
    notices = []
    if outside:
        notices.append(f"Warning: the principal point lies outside the image for {naming(outside)}.")
    if away:
        notices.append(
            f"Warning: the principal point lies far from the middle of {naming(away)}; are the intrinsics for images "
            "of another size?"
        )
    return notices
