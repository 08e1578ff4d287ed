"""Strivec small enough to be trained in seconds, on the ball of `dvgo_toys`."""

from dataclasses import replace
from pathlib import Path

import torch
from dvgo_toys import ball_geometry

from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.fields.strivec import Config, Model
from nfc_splat.training.config import TrainConfig, default_config, resolve

# Steps of milliseconds, and few of them: the learning rates make up for it.
SMALL = dict(steps=150, coarse_steps=50, coarse_voxels=18**3, coarse_rays=256, coarse_lr=0.5, coarse_eps=1e-15)
SMALL |= dict(geometry_threshold=1e-2, halves=(0.6, 0.3), spacings=(0.8, 0.4), cells=(8, 4, 12, 6))
SMALL |= dict(density_ranks=(8, 5), appearance_rank=6, features=5, octaves=1, width=16, rays=256)
SMALL |= dict(grow_at=(40,), mask_at=(20, 50), lr_decay_steps=150, lr_lines=0.1, lr_net=1e-2, density_shift=-6.0)


def toy_config(**changes: object) -> Config:
    """`SMALL` without a code for colours, with some fields replaced."""
    return Config(**(SMALL | {"target_encoding": "none"} | changes))


def placed(config: Config | None = None, **facts: object) -> Model:
    """A model whose tensors stand about the surface of a ball of radius 0.8."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    geometry = ball_geometry(**({"points": 0.8 * directions} | facts))
    config = toy_config(geometry="points") if config is None else config
    return Model.initialise(config, geometry)


def geometry_with(points: torch.Tensor) -> SceneGeometry:
    """The ball's cameras and these points."""
    return ball_geometry(points=points)


def training_config(scene: Path, out: Path, model: Config, **changes: object) -> TrainConfig:
    """A resolved configuration that trains `model` on a scene of `dvgo_toys.write_ball`."""
    config = default_config(scene, method="strivec", preset="quick", device="cpu")
    return resolve(replace(config, **({"model": model, "out": out, "threads": 1, "quiet": True} | changes)))
