"""A scene's fingerprint, and finished or unfinished runs read back for evaluation and rendering."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nfc_splat.data import DataConfig, Scene, load_scene
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.files import atomic_path
from nfc_splat.rendering import SceneModel
from nfc_splat.training.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from nfc_splat.training.config import TrainConfig
from nfc_splat.training.rebuilding import rebuilt_from
from nfc_splat.training.run import RunSource, find_run, read_config


class LoadedRun(NamedTuple):
    """A run as its checkpoint left it: `config, scene, model, step = load_run(folder)`."""

    config: TrainConfig
    scene: Scene
    model: SceneModel
    step: int


def load_run(folder: Path | str, device: str = "cpu", *, scene: Path | None = None) -> LoadedRun:
    """Read a run back.

    Args:
        folder: a run folder, for its newest checkpoint that can be believed, or one of its checkpoints.
        device: where the model shall be.
        scene: where the scene is now, if its folder was moved.

    Raises:
        UserError: not a run, no checkpoint that can be believed, one that holds far less than the configuration asks
            for, or a scene that is not the one trained on.
    """
    source = find_run(Path(folder))
    config = read_config(source.folder)
    checkpoint = checkpoint_of(source)
    loaded = load_training_scene(with_kept_points(config, source), scene)
    if scene_hash(loaded) != checkpoint.header.scene_hash:
        raise UserError(
            f"{loaded.root}: its cameras, image names or points are not those that {source.folder} was trained on"
        )
    model = rebuilt_from(checkpoint, config).to(device).eval()
    return LoadedRun(config, loaded, model, checkpoint.header.step)


def checkpoint_of(source: RunSource) -> Checkpoint:
    """The checkpoint that `source` names, else the run's newest; a `UserError` when there is none to be believed."""
    if source.checkpoint is not None:
        return read_checkpoint(source.checkpoint)
    checkpoint = newest_checkpoint(source.folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{source.folder}: the run has no checkpoint; start it again with --overwrite")
    return checkpoint


def load_training_scene(config: TrainConfig, path: Path | None = None) -> Scene:
    """The scene of a run, as its method wants it; `path` is where it is now, by default where the config says."""
    module = find_method(config.method).load()
    return load_scene(path or config.scene, config.data, undistort=module.Model.request == "image")


def with_kept_points(config: TrainConfig, source: RunSource | None) -> TrainConfig:
    """`config` with the points that the run `source` keeps, where it names those that the run was given."""
    points = config.data.points
    if source is None or points is None or points != read_config(source.folder).data.points:
        return config
    kept = source.folder / _kept_name(points)
    return replace(config, data=replace(config.data, points=kept)) if kept.is_file() else config


def keep_points(config: TrainConfig, folder: Path) -> None:
    """Copy the file of initial points into the run's folder, so that the run outlives it.

    Raises:
        UserError: it cannot be written.
    """
    points = config.data.points
    if points is None or (kept := folder / _kept_name(points)).resolve() == points.resolve():
        return
    with atomic_path(kept) as temporary:
        shutil.copyfile(points, temporary)


def _kept_name(points: Path) -> str:
    return "initial_points.ply" if points.suffix.lower() == ".ply" else "initial_points.txt"


def scene_hash(scene: Scene) -> str:
    """SHA-256 of what a run depends on: what the scene's files state, and how they were split, reduced and composited.

    The cameras' last bits are not in it: they depend on the processor that computed them.
    """
    splits = {name: (split.names, split.cameras.sizes.tolist()) for name, split in sorted(scene.splits.items())}
    facts = (scene.stated, splits, scene.resampler, scene.undistorted, scene.background.tolist())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def describe_scene(scene: Scene, fingerprint: str, data: DataConfig) -> dict[str, Any]:
    """What `config.json` says of the scene; where training images were chosen from more, also which."""
    chosen = data.train_views is not None or data.train_share is not None
    return {
        "format": scene.format,
        "hash": fingerprint,
        "views": {name: len(split) for name, split in scene.splits.items()},
        "training_images": scene.splits["train"].names if chosen else "all",
        "points": 0 if scene.points is None else len(scene.points),
        "background": scene.background.tolist(),
        "resampler": scene.resampler,
        "undistorted": scene.undistorted,
        "near_far": scene.near_far,
        "bounds": None if scene.bounds is None else scene.bounds.tolist(),
        "sphere": None if scene.sphere is None else scene.sphere.tolist(),
        "collider": scene.collider,
        "world_to_gt": None if scene.world_to_gt is None else scene.world_to_gt.tolist(),
        "notices": scene.notices,
    }


def evaluation_facts(run: LoadedRun) -> dict[str, Any]:
    """What a metric file says of the run besides the metrics: the `extra` of `nfc_splat.eval.views.evaluate_views`."""
    config, scene = run.config, run.scene
    return {
        "title": f"{scene.name}, {config.method}, {config.loss}",
        "method": config.method,
        "loss": config.loss,
        "loss_weight": config.loss_weight,
        "target_encoding": getattr(config.model, "target_encoding", None),
        "preset": config.preset,
        "step": run.step,
        "steps": config.steps,
        "primitives": run.model.primitives,
        "protocol": {
            "views": {name: len(split) for name, split in scene.splits.items()},
            "test_every": config.data.test_every,
            "train_views": config.data.train_views,
            "train_share": config.data.train_share,
            "train_noise": config.data.train_noise,
            "format": scene.format,
            "downscale": config.data.downscale,
            "resampler": scene.resampler,
            "undistorted": scene.undistorted,
            "seed": config.seed,
        },
    }
