"""What motion costs: training steps of a 4DGS run, continued from its newest checkpoint, and of its canonical Gaussians
standing still as in 3DGS, on the same images and taken in turn: `python -m nfc_splat.eval speed --moving RUN`.

Both draw the same number of Gaussians with the same loss and settings. None is added or removed, and nothing is
written.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nfc_splat.errors import UserError
from nfc_splat.eval.cost import SKIPPED, make_trainer, quiet, take_turns
from nfc_splat.terminal import print_table

if TYPE_CHECKING:
    from nfc_splat.training.trainer import Trainer


def compare_moving(run: Path, steps: int, threads: int) -> int:
    """Print both medians and their ratio; returns the exit code.

    Raises:
        UserError: not a finished run of 4DGS.
    """
    with quiet():
        trainers = make_pair(run, threads)
        seconds = take_turns(trainers, steps)
    counted = {name: np.array(times[int(SKIPPED * steps) :]) for name, times in seconds.items()}
    count = len(trainers["4dgs"].state.model.means)
    if any(len(trainer.state.model.means) != count for trainer in trainers.values()):
        raise RuntimeError("the number of Gaussians changed while they were timed")
    print(f"{run}: {count:,} Gaussians, {steps} steps each in turn, {threads} threads, on cpu")
    rows = [["step of", "median", "ratio"]]
    for name, times in counted.items():
        ratio = np.median(times / counted["3dgs"])
        rows.append([name, f"{1e3 * np.median(times):.2f} ms", f"{ratio:.2f}"])
    print_table(rows, numbers=(1, 2))
    return 0


def make_pair(run: Path, threads: int) -> dict[str, "Trainer"]:
    """The two trainers, "3dgs" first, past the last refinement of both."""
    from dataclasses import fields, replace

    from nfc_splat.fields import gaussians
    from nfc_splat.train import scene_geometry
    from nfc_splat.training.load import checkpoint_of, load_training_scene, scene_hash, with_kept_points
    from nfc_splat.training.run import find_run, read_config
    from nfc_splat.training.state import restored_state

    source = find_run(run)
    config = read_config(source.folder)
    checkpoint = checkpoint_of(source)
    if config.method != "4dgs" or checkpoint.header.step < config.steps:
        raise UserError(
            f"--moving {run}: is {config.method} at step {checkpoint.header.step} of {config.steps}; expected a "
            "finished run of --method 4dgs"
        )
    config = replace(config, threads=threads, device="cpu", quiet=True, log_every=10**9)
    scene = load_training_scene(with_kept_points(config, source))
    shared = {field.name: getattr(config.model, field.name) for field in fields(gaussians.Config)}
    still = replace(gaussians.Config(**shared), refine_start=10**9, refine_stop=0, reset_every=0)
    static = replace(config, method="3dgs", model=still)
    pair = {"3dgs": make_trainer(static, scene), "4dgs": make_trainer(config, scene)}
    moving = restored_state(checkpoint, config, scene_geometry(scene, "cpu"), scene_hash(scene))
    pair["4dgs"].state = moving
    state = pair["3dgs"].state
    tensors = {name: tensor.detach().clone() for name, tensor in moving.model.splats().items()}
    state.model = gaussians.Model(still, tensors, int(moving.model.active_sh_degree))
    state.optimizers = state.recipe.optimizers(state.model)
    state.step = config.steps
    return pair
