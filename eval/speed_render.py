"""How fast a trained model draws: `python -m nfc_splat.eval speed --render RUN`.

Every test view is drawn at its own time and resolution, as `eval images` draws it: colours, alpha and depth. One pass
over the views is not counted, as it compiles kernels and fills caches.
"""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nfc_splat.chosen_run import load_named
from nfc_splat.errors import UserError
from nfc_splat.eval.views import render_view
from nfc_splat.files import write_json
from nfc_splat.machine import hardware, versions

if TYPE_CHECKING:
    from nfc_splat.data import Split
    from nfc_splat.training.load import LoadedRun


def time_drawing(path: Path, pictures: int, threads: int, device: str, scene: Path | None, record: Path | None) -> int:
    """Print the median time of a picture, and write it to `record`; returns the exit code.

    Args:
        path: a run, one of its checkpoints, or a file that a model or Gaussians were exported to.
        pictures: how many to time at least; every view is drawn equally often.
        threads: in force, to be said.
        device: "cpu" or "cuda".
        scene: where the scene is, for files and for runs whose scene was moved.
        record: a JSON file, or None.

    Raises:
        UserError: nothing that can be drawn, or a scene without test views.
    """
    run = load_named(path, device, scene=scene)
    views = run.scene.splits.get("test")
    if not views:
        raise UserError(f"--render {path}: {run.scene.name} has no test views")
    rounds = math.ceil(pictures / len(views))
    seconds = drawing_seconds(run, views, rounds, device)
    median = float(np.median(seconds))
    sizes, count = _sizes(views), run.model.primitives
    primitives = "" if count is None else f"{count:,} primitives, "
    print(
        f"{run.scene.name}, {run.config.method}: step {run.step}, {primitives}{len(views)} test views of {sizes} drawn "
        f"{rounds} times each, {device}, {threads} threads"
    )
    print(f"  median {1e3 * median:.2f} ms, {1 / median:.2f} FPS")
    if record is not None:
        facts = {"median_ms": 1e3 * median, "fps": 1 / median, "views": len(views), "rounds": rounds}
        facts |= {"method": run.config.method, "step": run.step, "primitives": count}
        facts |= {"resolution": sizes, "device": device, "threads": threads}
        write_json(record, facts | {"hardware": hardware(), "versions": versions()})
    return 0


def drawing_seconds(run: "LoadedRun", views: "Split", rounds: int, device: str) -> np.ndarray:
    """Seconds [rounds, V] that each of V views took, once the device was done; a first round is not among them."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    cameras = [views.cameras[index].to(device) for index in range(len(views))]
    background = run.scene.background.to(device)
    seconds = np.empty((1 + rounds, len(cameras)))
    for turn in range(1 + rounds):
        for index, camera in enumerate(cameras):
            wait()
            started = time.perf_counter()
            render_view(run.model, camera, background)
            wait()
            seconds[turn, index] = time.perf_counter() - started
    return seconds[1:]


def _sizes(views: "Split") -> str:
    """Like 800x800, or the least and the most of each side."""
    sizes = sorted({tuple(size) for size in views.cameras.sizes.tolist()})
    first, last = ("x".join(map(str, size)) for size in (sizes[0], sizes[-1]))
    return first if first == last else f"{first} to {last}"
