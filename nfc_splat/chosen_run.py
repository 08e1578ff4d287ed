"""The run that a command is about: the flags that name it, and loading it. Shared by the doors that read runs."""

import argparse
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nfc_splat.errors import UserError

if TYPE_CHECKING:
    from nfc_splat.cameras import Cameras
    from nfc_splat.data import Split
    from nfc_splat.fields.gaussians import Config, Model
    from nfc_splat.training.load import LoadedRun

SPLITS = ("test", "train", "val")

log = logging.getLogger("nfc_splat")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --checkpoint, --scene and --device."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="run folder, or one of its checkpoints; with --scene also what export model wrote, or Gaussians in a PLY",
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="which checkpoint (default: the newest)")
    parser.add_argument("--scene", type=Path, metavar="FOLDER", help="where the scene is now, if it was moved")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to render")


def load_chosen_run(options: argparse.Namespace) -> tuple["LoadedRun", str]:
    """Load what `add_run_arguments` parsed, with every core in use; returns the run and its device.

    Raises:
        UserError: no such run or checkpoint, a scene that is not the run's, or no such device.
    """
    from nfc_splat.rendering.kernels.threads import set_threads
    from nfc_splat.training.config import choose_device

    set_threads(None)
    device = choose_device(options.device)
    return load_named(options.run, device, options.scene, options.checkpoint), device


def load_named(path: Path, device: str, scene: Path | None = None, step: int | None = None) -> "LoadedRun":
    """Load what RUN, --scene and --checkpoint name, to `device`.

    Raises:
        UserError: no such run or checkpoint, or a scene that is not the run's.
    """
    from nfc_splat.training.load import load_run

    if is_splat_file(path) or is_model_file(path):
        _check_file(path, scene, step)
        return (load_splats if is_splat_file(path) else load_model)(path, device, scene)
    return load_run(chosen_checkpoint(path, step), device, scene=scene)


def is_splat_file(path: Path) -> bool:
    """Whether `path` is meant as Gaussians in a file, and not as a run."""
    return path.suffix.lower() == ".ply"


def is_model_file(path: Path) -> bool:
    """Whether `path` is meant as what `export model` wrote, and not as a run or its checkpoint."""
    from nfc_splat.training.checkpoint import CHECKPOINT_NAME

    return path.suffix.lower() == ".safetensors" and not CHECKPOINT_NAME.fullmatch(path.name)


def run_folder(options: argparse.Namespace) -> Path:
    """The folder of the run that a command is about; beside a file of Gaussians or of a model, one of its name."""
    from nfc_splat.training.run import find_run

    path = options.run
    return path.with_suffix("") if is_splat_file(path) or is_model_file(path) else find_run(path).folder


def chosen_checkpoint(run: Path, step: int | None) -> Path:
    """The run, or its checkpoint of that step; a `UserError` lists the steps there are."""
    if step is None:
        return run
    from nfc_splat.training.checkpoint import checkpoint_files

    files = checkpoint_files(run / "checkpoints")
    if step not in files:
        there = ", ".join(map(str, files)) or "none"
        raise UserError(f"--checkpoint {step}: {run} has no checkpoint of that step, it has {there}")
    return files[step]


def chosen_split(run: "LoadedRun", flag: str, name: str) -> "Split":
    """The split called `name`; a `UserError` names `flag` and the splits there are when it has no views."""
    split = run.scene.splits.get(name)
    if not split:
        present = ", ".join(f"{other} ({len(views)})" for other, views in run.scene.splits.items())
        raise UserError(
            f"{flag} {name}: {run.scene.name} has no such views, it has {present}; choose another, or train with "
            "--test-every 8 to hold some out for testing"
        )
    return split


def check_time(time: float) -> None:
    """Raise a `UserError` unless `time` is in [0, 1]."""
    if not 0 <= time <= 1:
        raise UserError(f"--time {time:g}: expected 0 to 1, the first and the last moment of the scene")


def at_time(run: "LoadedRun", cameras: "Cameras", time: float) -> "Cameras":
    """`cameras` at another time; a `UserError` when the run's method knows none."""
    import torch

    from nfc_splat.fields import find_method

    check_time(time)
    if not find_method(run.config.method).dynamic:
        raise UserError(f"--time {time:g}: {run.config.method} does not model motion; leave it out")
    return replace(cameras, times=torch.full((len(cameras),), time))


def _check_file(path: Path, scene: Path | None, step: int | None) -> None:
    """Raise a `UserError` unless what a file needs beside it is named, and nothing that only runs have."""
    if scene is None:
        what = "Gaussians" if is_splat_file(path) else "a model"
        raise UserError(f"{path}: is a file of {what}; name the scene whose views to draw with --scene FOLDER")
    if step is not None:
        raise UserError(f"--checkpoint {step}: {path} is a file, not a run; leave it out")


def load_model(path: Path, device: str, scene: Path) -> "LoadedRun":
    """What `export model` wrote, as if its run had been on `scene`, whose views are read as that run read its own.

    Raises:
        UserError: not such a file.
    """
    from nfc_splat.training.load import LoadedRun, load_training_scene
    from nfc_splat.training.model_file import read_model, rebuild

    file = read_model(path, scene, device)
    loaded = load_training_scene(file.config)
    return LoadedRun(file.config, loaded, rebuild(file, loaded), file.step)


def load_splats(path: Path, device: str, scene: Path) -> "LoadedRun":
    """The Gaussians in a PLY in INRIA's layout, from any tool, as if a run of `3dgs` on `scene` had left them.

    Raises:
        UserError: not such a file.
    """
    from nfc_splat.training.config import default_config, resolve
    from nfc_splat.training.load import LoadedRun, load_training_scene

    config = resolve(default_config(scene, method="3dgs", preset="paper", device=device))
    model, dropped = splat_model(path, config.model, device)
    if dropped:
        log.warning("%s: %d Gaussians are not finite and left out", path, dropped)
    return LoadedRun(config, load_training_scene(config), model, 0)


def splat_model(path: Path, config: "Config", device: str) -> tuple["Model", int]:
    """The Gaussians of a PLY, to be drawn as `config` says, in eval mode, and how many were left out for not being
    finite; where the file says so, antialiased."""
    from nfc_splat.fields.gaussians import Model
    from nfc_splat.fields.splat_file import read_splats

    splats, dropped = read_splats(path)
    if not len(splats.means):
        raise UserError(f"{path}: holds no Gaussian whose values are finite")
    degree = math.isqrt(splats.shN.shape[1] + 1) - 1
    tensors = {name: getattr(splats, name) for name in ("means", "quats", "scales", "opacities", "sh0", "shN")}
    config = replace(config, sh_degree=degree, antialiased=splats.antialiased)
    return Model(config, tensors, degree).to(device).eval(), dropped
