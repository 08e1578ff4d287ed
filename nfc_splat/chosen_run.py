"""The run that a command is about: the flags that name it, and loading it. Shared by the doors that read runs."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nfc_splat.errors import UserError

if TYPE_CHECKING:
    from nfc_splat.cameras import Cameras
    from nfc_splat.data import Split
    from nfc_splat.training.load import LoadedRun

SPLITS = ("test", "train", "val")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --checkpoint, --scene and --device."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or one of its checkpoints")
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
    from nfc_splat.training.load import load_run

    set_threads(None)
    device = choose_device(options.device)
    return load_run(_checkpoint(options.run, options.checkpoint), device, scene=options.scene), device


def _checkpoint(run: Path, step: int | None) -> Path:
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


def at_time(run: "LoadedRun", cameras: "Cameras", time: float) -> "Cameras":
    """`cameras` at another time; a `UserError` when the run's method knows none."""
    import torch

    from nfc_splat.fields import find_method

    if not 0 <= time <= 1:
        raise UserError(f"--time {time:g}: expected 0 to 1, the first and the last moment of the scene")
    if not find_method(run.config.method).dynamic:
        raise UserError(f"--time {time:g}: {run.config.method} does not model motion; leave it out")
    return replace(cameras, times=torch.full((len(cameras),), time))
