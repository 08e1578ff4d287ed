"""How long a training step of 3D Gaussians takes, phase by phase, and beside another trainer in the same run.

`python -m nfc_splat.eval speed` writes a small COLMAP scene (so that any trainer can read it), starts with one Gaussian
per point, and times training steps as the trainer takes them: SH degree 3, L1 + 0.2 D-SSIM, Adam, no densification. A
peer is timed from outside, as the difference of two runs' wall times, so that its start-up does not count.

Symbols: N Gaussians, H rows, W columns.
"""

import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nfc_splat.errors import UserError

VIEWS = 20
WARM_UP = 5
NEVER = str(10**6)  # an iteration that no run here reaches
PROGRAM = "python -m nfc_splat.eval speed"
PHASES = ("forward", "loss", "backward", "optimiser")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    width: int
    height: int
    gaussians: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}, {self.gaussians:,} Gaussians"


CASES = (Case(320, 240, 10_000), Case(640, 480, 50_000))


@dataclass(frozen=True)
class Options:
    """Time a training step of 3D Gaussians, or what one of --fields, --kernels, --mesh, --moving, --nerf-pytorch and
    --dnerf says."""

    steps: int | None = None
    """Timed steps of each case, after five that are not counted; 60 by default."""
    threads: int | None = None
    """Threads for our kernels; every available core by default."""
    opensplat: Path | None = None
    """An OpenSplat binary to time beside, on the same scenes and cores."""
    nerf_pytorch: Path | None = None
    """A checkout of nerf-pytorch: time its training step and that of method nerf in turn instead."""
    dnerf: Path | None = None
    """A checkout of D-NeRF: time its training step and that of method dnerf in turn instead."""
    moving: Path | None = None
    """A finished run of 4dgs: time its fine stage's step and that of its Gaussians standing still in turn instead."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where our step runs."""
    kernels: bool = False
    """Time the kernels of marched fields beside plain torch instead; --steps then counts the rounds."""
    fields: tuple[Literal["dvgo", "ngp", "nerf"], ...] | None = None
    """Time training steps of these ray-marched methods by phase instead, of the quick preset."""
    scene: Path | None = None
    """What --fields trains on: a scene folder, or a painted ball by default."""
    mesh: bool = False
    """Time geometry evaluation beside open3d, trimesh and scipy instead."""
    record: Path | None = None
    """A JSON file for what --fields, --kernels or --mesh measures."""


# What is timed in place of 3D Gaussians, and the flags that each heeds; "" is 3D Gaussians.
BENCHMARKS = {
    "": ("steps", "threads", "device", "opensplat"),
    "fields": ("steps", "threads", "device", "scene", "record"),
    "kernels": ("steps", "threads", "device", "record"),
    "mesh": ("threads", "record"),
    "moving": ("steps", "threads"),
    "nerf_pytorch": ("steps", "threads"),
    "dnerf": ("steps", "threads"),
}


# ------------------------------------------------------------------------------------------------ the scene


def write_scene(folder: Path, case: Case, seed: int = 0) -> None:
    """A COLMAP binary scene: `case.gaussians` coloured points on the walls of a box and on spheres inside it, and
    `VIEWS` pictures of them from the middle of the box, drawn as larger, shifted splats so that every step has
    gradients everywhere."""
    from PIL import Image

    random = np.random.default_rng(seed)
    points, colors = _points(case.gaussians, random)
    sparse, images = folder / "sparse" / "0", folder / "images"
    sparse.mkdir(parents=True)
    images.mkdir()
    focal = 0.6 * case.width
    intrinsics = (focal, focal, case.width / 2, case.height / 2)
    PINHOLE = 1  # COLMAP's number for the model
    camera = struct.pack("<QiiQQ4d", 1, 1, PINHOLE, case.width, case.height, *intrinsics)
    (sparse / "cameras.bin").write_bytes(camera)
    viewmats = [_viewmat(2 * np.pi * k / VIEWS) for k in range(VIEWS)]
    rows = [struct.pack("<Q", VIEWS)]
    for k, (viewmat, picture) in enumerate(
        zip(viewmats, _pictures(points, colors, viewmats, focal, case), strict=True)
    ):
        name = f"view{k:03d}.png"
        Image.fromarray(picture).save(images / name)
        pose = (*_quaternion(viewmat[:3, :3]), *viewmat[:3, 3])
        rows.append(struct.pack("<i7di", k + 1, *pose, 1) + name.encode() + b"\0" + struct.pack("<Q", 0))
    (sparse / "images.bin").write_bytes(b"".join(rows))
    rows = [struct.pack("<Q", case.gaussians)]
    for k, (xyz, rgb) in enumerate(zip(points, (colors * 255).astype(int), strict=True)):
        rows.append(struct.pack("<Q3d3BdQ", k + 1, *xyz, *rgb, 0.5, 0))
    (sparse / "points3D.bin").write_bytes(b"".join(rows))


def _points(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] on a box of half size (3, 2, 3) and three spheres in it, and smooth colours [N, 3]."""
    box = np.array([3.0, 2.0, 3.0])
    points = random.uniform(-1, 1, (count, 3)) * box
    face = random.integers(0, 3, count)
    rows = np.arange(count)
    points[rows, face] = np.sign(points[rows, face]) * box[face]
    ball = random.random(count) < 0.25
    directions = random.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centers = np.array([[1.8, 0.8, 0.0], [-1.2, 1.0, 1.5], [-0.8, 0.9, -1.8]])[random.integers(0, 3, count)]
    points[ball] = (centers + 0.6 * directions)[ball]
    colors = 0.5 + 0.4 * np.sin(points @ random.normal(size=(3, 3)) * 1.5)
    return points, colors


def _viewmat(angle: float) -> np.ndarray:
    """World to camera from a small circle around the origin, looking outwards; y is down in world and camera."""
    forward = np.array([np.cos(angle), 0.1, np.sin(angle)])
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation
    viewmat[:3, 3] = -rotation @ (-0.8 * forward)
    return viewmat


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """wxyz of a rotation matrix: the eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix."""
    r = rotation
    matrix = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [0, 0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [0, 0, 0, r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    return np.linalg.eigh(matrix, UPLO="U")[1][:, -1]


def _pictures(points, colors, viewmats, focal: float, case: Case) -> list[np.ndarray]:
    """uint8 [H, W, 3] pictures of the points, as opaque splats a little larger than their spacing."""
    from nfc_splat.rendering.rasterize import rasterize

    means = torch.tensor(points + 0.02, dtype=torch.float32)
    count = len(means)
    K = torch.tensor([[[focal, 0, case.width / 2], [0, focal, case.height / 2], [0, 0, 1]]])
    pictures = []
    for viewmat in viewmats:
        image, _, _ = rasterize(
            means,
            torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
            torch.full((count, 3), 0.6 * (100 / count) ** 0.5),
            torch.full((count,), 0.8),
            torch.tensor(colors, dtype=torch.float32),
            torch.tensor(viewmat[None], dtype=torch.float32),
            K.float(),
            case.width,
            case.height,
        )
        pictures.append((image[0].clamp(0, 1) * 255).byte().numpy())
    return pictures


# ------------------------------------------------------------------------------------------------ our step


def time_steps(folder: Path, steps: int, device: str) -> dict[str, float]:
    """Median milliseconds of each phase of a training step, and of the whole ("step"), on the scene in `folder`."""
    from dataclasses import replace

    from nfc_splat.data import DataConfig, load_scene
    from nfc_splat.fields import gaussians
    from nfc_splat.fields.recipe import SceneGeometry
    from nfc_splat.training.batches import Batches

    scene = load_scene(folder, DataConfig(), undistort=True)
    split = scene.splits["train"]
    geometry = SceneGeometry(split.cameras.to(device), scene.points.to(device), scene.colors.to(device))
    never = {"refine_start": 10**9, "refine_stop": 10**9, "reset_every": 0}
    config = replace(gaussians.preset("quick"), max_primitives=10**9, **never)
    model = gaussians.Model.initialise(config, geometry).train()
    model.active_sh_degree.fill_(3)
    recipe = gaussians.Recipe(config, geometry)
    optimizers = recipe.optimizers(model)
    batches = Batches(split, scene.background, device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = np.empty((steps + WARM_UP, len(PHASES)))
    for step in range(steps + WARM_UP):
        batch = batches.load([step % len(split)])
        times[step] = _step(model, recipe, optimizers, batch, step + 1, wait)
    counted = times[WARM_UP:] * 1e3
    phases = dict(zip(PHASES, np.median(counted, 0), strict=True))
    return {**phases, "step": float(np.median(counted.sum(1))), "gaussians": len(model.means)}


def _step(model: Any, recipe: Any, optimizers: dict, batch: Any, step: int, wait: Callable[[], None]) -> list[float]:
    """Seconds of each phase of one training step."""
    wait()
    marks = [time.perf_counter()]

    def mark() -> None:
        wait()
        marks.append(time.perf_counter())

    rendering = model.render(batch.cameras, batch.pixels, background=batch.background)
    mark()
    losses = {"photometric": recipe.photometric(rendering, batch)}
    recipe.before_backward(rendering, losses, step)
    mark()
    losses["photometric"].backward()
    mark()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    recipe.after_step(model, optimizers, rendering, step)
    mark()
    return [after - before for before, after in pairwise(marks)]


# ------------------------------------------------------------------------------------------------ the peer


def time_opensplat(binary: Path, folder: Path, steps: int, threads: int) -> float:
    """Milliseconds per iteration of OpenSplat on the same scene: from the first degree-3 iteration, without
    densification, as the difference between a run of 5 + `steps` iterations and one of 5.

    OpenSplat 1.2 moves the view-dependent colours only every 16th step, ours moves all parameters in each; its
    rasteriser takes every core, `threads` binds the rest of it.
    """
    seconds = [_run_opensplat(binary, folder, count, threads) for count in (WARM_UP, WARM_UP + steps)]
    return (seconds[1] - seconds[0]) / steps * 1e3


def _run_opensplat(binary: Path, folder: Path, iterations: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as output:
        command = [str(binary), str(folder), "--cpu", "-n", str(iterations), "-o", str(Path(output) / "splat.ply")]
        command += ["--sh-degree", "3", "--sh-degree-interval", "1", "--ssim-weight", "0.2"]
        command += ["--densify-from", NEVER, "--densify-until", NEVER]
        started = time.perf_counter()
        try:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except OSError as error:
            raise UserError(
                f"--opensplat {binary}: cannot be started ({error.strerror}); give the path of a binary"
            ) from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
            raise UserError(f"--opensplat {binary}: ended with code {done.returncode}, saying: {said[0]}")
        return time.perf_counter() - started


# ------------------------------------------------------------------------------------------------ the command


def main(argv: list[str]) -> int:
    """Print a row per case; returns the exit code."""
    from nfc_splat.options import parse_options
    from nfc_splat.rendering.kernels.memory import keep_freed_memory
    from nfc_splat.rendering.kernels.threads import set_threads

    options = parse_options(Options, argv, PROGRAM)
    benchmark = chosen_benchmark(options)
    steps = 60 if options.steps is None else options.steps
    if steps < 1:
        raise UserError(f"--steps {steps}: expected at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; python -m nfc_splat.doctor says why")
    threads = set_threads(options.threads)
    keep_freed_memory()
    if benchmark == "fields":
        from nfc_splat.eval.speed_phases import time_fields

        return time_fields(options.fields, options.scene, steps, threads, options.device, options.record)
    if benchmark == "kernels":
        from nfc_splat.eval.speed_fields import compare_kernels

        return compare_kernels(steps, threads, options.device, options.record)
    if benchmark == "mesh":
        from nfc_splat.eval.speed_mesh import compare_meshes

        return compare_meshes(threads, options.record)
    if benchmark == "moving":
        from nfc_splat.eval.speed_moving import compare_moving

        return compare_moving(options.moving, steps, threads)
    if benchmark:
        peer = import_module(f"nfc_splat.eval.speed_{'nerf' if benchmark == 'nerf_pytorch' else benchmark}")
        return peer.print_comparison(getattr(options, benchmark), steps, threads)
    return time_gaussians(steps, threads, options.device, options.opensplat)


def chosen_benchmark(options: Options) -> str:
    """Which of `BENCHMARKS` is asked for.

    Raises:
        UserError: more than one, a flag that it would not heed, or --fields without a method.
    """
    default = Options()
    given = [field.name for field in fields(Options) if getattr(options, field.name) != getattr(default, field.name)]
    flag = lambda name: "--" + name.replace("_", "-")  # noqa: E731
    chosen = [name for name in given if name in BENCHMARKS]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(map(flag, chosen))}: expected at most one of them; each times something else")
    benchmark = chosen[0] if chosen else ""
    if options.fields == ():
        raise UserError("--fields: names no method; expected one or more of dvgo, ngp, nerf")
    for name in given:
        if name != benchmark and name not in BENCHMARKS[benchmark]:
            value = "" if isinstance(getattr(options, name), bool) else f" {getattr(options, name)}"
            heeding = " and ".join(flag(other) for other, heeded in BENCHMARKS.items() if other and name in heeded)
            where = f"{flag(benchmark)} does not heed it" if benchmark else f"it belongs to {heeding}"
            raise UserError(f"{flag(name)}{value}: {where}; leave it out")
    return benchmark


def time_gaussians(steps: int, threads: int, device: str, opensplat: Path | None) -> int:
    """Print one row per case; with a peer, its time and the ratio."""
    print(f"median of {steps} training steps, {device}, {threads} threads; milliseconds")
    heads = [*PHASES, "step", *(["OpenSplat", "ratio"] if opensplat else [])]
    print(f"{'':28}" + "".join(f"{head:>11}" for head in heads))
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_scene(folder, case)
            row = time_steps(folder, steps, device)
            if row.pop("gaussians") != case.gaussians:
                raise RuntimeError("the number of Gaussians changed while they were timed")
            cells = [f"{value:11.2f}" for value in row.values()]
            if opensplat:
                peer = time_opensplat(opensplat, folder, steps, threads)
                cells += [f"{peer:11.2f}", f"{peer / row['step']:11.2f}"]
        print(f"{case.name:28}" + "".join(cells))
        sys.stdout.flush()
    return 0
