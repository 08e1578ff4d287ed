"""What a training run is told: `TrainConfig`, how its "auto" values are settled, and which of its fields a resumed run
must share with the run that it continues."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from nfc_splat.data.config import DataConfig
from nfc_splat.data.detect import absolute_path
from nfc_splat.errors import UserError
from nfc_splat.fields import find_method
from nfc_splat.losses.nfc import EPS, EPS_LOW
from nfc_splat.training.plain import from_plain, to_plain
from nfc_splat.training.processes import cores_of_process

# These may change when a run is resumed: they do not touch what is learned, or the scene's hash covers them.
FREE = {"scene", "out", "resume", "overwrite", "device", "protocol", "split"}
FREE |= {"threads", "quiet", "log_every", "curve_points", "checkpoints", "view", "view_port"}
AUTO_METHOD, AUTO_MOVING_METHOD = "3dgs", "4dgs"  # what --method auto means, for scenes that stand still and others
Preset = Literal["auto", "quick", "paper", "paper-original"]
FREE_DATA = {"format", "points", "allow_missing", "allow_external_paths", "max_pixels", "image_cache_gb"}


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    save_steps: int = 5000
    """Save after this many steps; 0 for never."""

    save_minutes: float = 5.0
    """Save after this many minutes; 0 for never. The end of training and an interruption always save."""

    keep: int = 2
    """How many checkpoints to keep, the newest ones."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a scene model from posed images, evaluate it on the held-out views and export it."""

    # What --help calls the flags from this one on.
    FLAG_GROUPS: ClassVar[dict[str, str]] = {"out": "run"}

    scene: Path
    """Folder of the scene. Not needed with --resume PATH."""

    method: str = "auto"
    """What to train: 3dgs, 4dgs, dnerf, dvgo, nerf, neus, ngp or strivec. "auto" is 4dgs for frames of different times,
    else 3dgs."""

    loss: Literal["regression", "classification", "bitwise"] = "regression"
    """The method's own loss, or that plus NFC's (arXiv 2403.01058): of colours, or of bits (Eq. 3; fields only)."""

    loss_weight: float | None = None
    """Weight of the classification loss. None is the method's default."""

    loss_eps: float = EPS
    """The classification loss clamps colours at 1 - this."""

    loss_eps_low: float = EPS_LOW
    """The classification loss clamps colours at this from below."""

    photometric_weight: float = 1.0
    """Weight of the method's own photometric loss, whatever --loss is. NFC's losses have larger gradients; a weight of
    10 beside --loss regression tells what comes from that alone."""

    preset: Preset = "auto"
    """Where the method's settings come from: quick (minutes on two CPU cores) or paper (the published ones, for a GPU);
    paper-original (neus) is the authors' where paper is a later implementation's. "auto" follows the device. Every
    setting can still be overridden."""

    out: Path | None = None
    """Run folder. None is runs/SCENE-METHOD-LOSS."""

    resume: str | None = None
    """Continue a run: alone, from the newest checkpoint of the run folder; with a PATH, from that run folder or
    checkpoint; with "auto", start afresh where no checkpoint was ever completed."""

    overwrite: bool = False
    """Start again in a folder that holds a run: its files are deleted."""

    seed: int = 42
    """Seed of everything random."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. "auto" is CUDA where torch sees it."""

    protocol: Literal["default", "graphdeco", "nerfbaselines", "dnerf", "4dgs"] = "default"
    """How the test views are measured at the end."""

    split: Literal["test", "val"] = "test"
    """Which views are measured at the end: D-NeRF's lego has another scene in its test views."""

    threads: int | None = None
    """CPU threads of a process. None is its share of the cores given."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    curve_points: int = 0
    """How many times to measure PSNR along the training, on up to 8 views of --split and as many training views,
    into metrics.jsonl; 0 for never. It changes nothing that is learned."""

    quiet: bool = False
    """Print only errors and the final result."""

    view: bool = False
    """Show the training in a browser. It changes nothing that is learned."""

    view_port: int | None = None
    """Port of --view. None is the first free one from 8080 on."""

    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: Any = None

    @property
    def steps(self) -> int:
        """How many optimiser steps the run has."""
        return self.model.steps


def default_config(
    scene: Path,
    *,
    method: str = "auto",
    preset: str = "auto",
    steps: int | None = None,
    device: str = "auto",
    **chosen: str,
) -> TrainConfig:
    """The configuration that a method's preset gives, before anything is overridden.

    Args:
        scene: folder of the scene.
        method: name of a method, or "auto".
        preset: "quick", "paper", another one that the method has, or "auto".
        steps: None for the preset's. Another number scales whatever the method keys to a step.
        device: decides the preset when that is "auto".
        chosen: values of the method's `preset_fields`.
    """
    method = auto_method(scene, DataConfig()) if method == "auto" else method
    module = find_method(method).load()
    if preset not in get_args(Preset):
        raise UserError(f"--preset {preset}: expected auto, quick or paper")
    if preset == "auto":
        preset = "paper" if choose_device(device) == "cuda" else "quick"
    model = module.preset(preset, **chosen)
    if steps is not None:
        if steps < 1:
            raise UserError(f"--steps {steps}: expected 1 or more")
        model = model.scaled_to(steps)
    return TrainConfig(scene, method=method, preset=preset, device=device, model=model)


def auto_method(scene: Path, data: DataConfig) -> str:
    """What `--method auto` means for a scene; one that does not exist will be missed when it is loaded."""
    from nfc_splat.data.motion import scene_moves

    moves = absolute_path(scene).exists() and scene_moves(scene, data)
    return AUTO_MOVING_METHOD if moves else AUTO_METHOD


def resolve(config: TrainConfig) -> TrainConfig:
    """`config` with every "auto" and None settled for this machine, checked.

    Raises:
        UserError: a value that makes no sense; it names the flag.
    """
    method = find_method(AUTO_METHOD if config.method == "auto" else config.method)
    _check(config)
    config.data.check()
    device = choose_device(config.device)
    weight = config.loss_weight
    if config.loss != "regression" and weight is None:
        weight = method.loss_weight
    scene = absolute_path(config.scene)
    name = scene.parent.name if scene.is_file() else scene.name
    points = config.data.points
    data = config.data if points is None else replace(config.data, points=absolute_path(points))
    cores = cores_of_process()
    out = config.out or Path("runs") / f"{name}-{method.name}-{config.loss}"
    return replace(
        config,
        scene=scene,
        method=method.name,
        loss_weight=weight,
        preset=config.preset if config.preset != "auto" else "paper" if device == "cuda" else "quick",
        out=out,
        data=data,
        device=device,
        model=_settle_encoding(config, method.name),
        threads=min(config.threads or cores, cores),
    )


def _settle_encoding(config: TrainConfig, method: str) -> Any:
    """The method's configuration with its target encoding settled: by default binary unless the loss is regression.

    Raises:
        UserError: the bit-wise loss without bits.
    """
    chosen = getattr(config.model, "target_encoding", None)
    if config.loss == "bitwise" and chosen not in ("auto", "binary", "gray"):
        why = f"{method} predicts no bits" if chosen is None else f"--target-encoding {chosen} has no bits"
        raise UserError(f"--loss bitwise: {why}; it needs a ray-marched method and --target-encoding binary or gray")
    if chosen != "auto":
        return config.model
    return replace(config.model, target_encoding="none" if config.loss == "regression" else "binary")


def _check(config: TrainConfig) -> None:
    """Raise a `UserError` that names the first flag whose value makes no sense."""
    saving = config.checkpoints
    if not (0 <= config.loss_eps_low < 1 - config.loss_eps <= 1):
        raise UserError(
            f"--loss-eps {config.loss_eps} --loss-eps-low {config.loss_eps_low}: expected 0 <= low < 1 - eps <= 1"
        )
    if config.loss == "regression" and config.loss_weight is not None:
        raise UserError(
            f"--loss-weight {config.loss_weight}: has no effect with --loss regression; add --loss classification"
        )
    if config.view_port is not None and not config.view:
        raise UserError(f"--view-port {config.view_port}: has no effect without --view; add it")
    for flag, value, least in (
        ("--loss-weight", 1 if config.loss_weight is None else config.loss_weight, 0),
        ("--photometric-weight", config.photometric_weight, 0),
        ("--steps", config.steps, 1),
        ("--threads", 1 if config.threads is None else config.threads, 1),
        ("--log-every", config.log_every, 1),
        ("--curve-points", config.curve_points, 0),
        ("--seed", config.seed, 0),
        ("--save-steps", saving.save_steps, 0),
        ("--save-minutes", saving.save_minutes, 0),
        ("--keep", saving.keep, 1),
    ):
        if not least <= value < float("inf"):
            raise UserError(f"{flag} {value}: expected {least} or more")
    if config.seed >= 2**63:
        raise UserError(f"--seed {config.seed}: expected less than 2**63")
    if config.resume is not None and config.overwrite:
        raise UserError("--resume and --overwrite: expected at most one of them")


def choose_device(device: str) -> str:
    """ "cpu" or "cuda" for the value of `--device`; a `UserError` for others, or CUDA where there is none."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: expected auto, cpu or cuda (CUDA_VISIBLE_DEVICES chooses among cards)")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; use --device cpu, or install a CUDA build "
            "of torch and check the driver with nvidia-smi"
        )
    return ("cuda" if available else "cpu") if device == "auto" else device


def matching(config: TrainConfig) -> dict[str, Any]:
    """The part of a resolved config, as JSON, that a resumed run must share."""
    plain = to_plain(config)
    kept = {key: value for key, value in plain.items() if key not in FREE}
    kept["data"] = {key: value for key, value in plain["data"].items() if key not in FREE_DATA}
    return kept


def config_hash(config: TrainConfig) -> str:
    """SHA-256 of `matching(config)`."""
    return hashlib.sha256(json.dumps(matching(config), sort_keys=True).encode()).hexdigest()


def config_from_plain(value: Any, source: str) -> TrainConfig:
    """A `TrainConfig` from `to_plain`'s JSON, the method's config included.

    Raises:
        UserError: unknown keys, missing keys, wrong types, or a method that does not exist; `source` says where.
    """
    config = from_plain(TrainConfig, value, source)
    module = find_method(config.method).load()
    return replace(config, model=from_plain(module.Config, config.model, f"{source}: model"))
