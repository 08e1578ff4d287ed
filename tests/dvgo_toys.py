"""A ball photographed from around it, and DVGO small enough to find it in seconds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nfc_splat.cameras import Cameras
from nfc_splat.fields.dvgo import Config
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.training.config import TrainConfig, default_config, resolve

RADIUS, COLOR, DISTANCE, FIELD_OF_VIEW = 0.8, (0.9, 0.4, 0.2), 4.0, 0.7
VIEWS = 9


def poses(count: int = VIEWS) -> list[np.ndarray]:
    """Camera-to-world matrices in OpenGL axes, on a spiral around the ball."""
    result = []
    for index in range(count):
        angle, height = 2.4 * index, 1.2 * index / (count - 1) - 0.6
        backward = np.array([math.cos(angle) * math.cos(height), math.sin(angle) * math.cos(height), math.sin(height)])
        right = np.cross([0, 0, 1], backward)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(backward, right), backward], 1)
        pose[:3, 3] = DISTANCE * backward
        result.append(pose)
    return result


def write_ball(folder: Path, size: int = 24, transparent: bool = True) -> Path:
    """The scene in Blender's format: analytic pictures with the background transparent, or blue in the picture."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    focal = 0.5 * size / math.tan(FIELD_OF_VIEW / 2)
    toward = np.stack([(columns - size / 2) / focal, (rows - size / 2) / focal, np.ones_like(rows)], -1)
    along = DISTANCE * toward[..., 2] / np.linalg.norm(toward, axis=-1)
    hit = (DISTANCE**2 - along**2 < RADIUS**2)[..., None]
    image = np.where(hit, COLOR, (0.2, 0.3, 0.8))
    if transparent:
        image = np.concatenate([np.where(hit, COLOR, 0.0), hit], -1)
    frames = {"train": [], "test": []}
    for index, pose in enumerate(poses()):
        split = "test" if index == VIEWS - 1 else "train"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().astype(np.uint8)).save(folder / split / f"{index}.png")
        frames[split].append({"file_path": f"{split}/{index}", "transform_matrix": pose.tolist()})
    for split, listed in frames.items():
        (folder / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": FIELD_OF_VIEW, "frames": listed})
        )
    return folder


def ball_cameras(size: int = 24) -> Cameras:
    """The cameras of `write_ball`."""
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    viewmats = torch.tensor(np.stack([np.linalg.inv(pose @ flip) for pose in poses()]), dtype=torch.float32)
    focal = 0.5 * size / math.tan(FIELD_OF_VIEW / 2)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras.pinhole(viewmats, K, size, size)


def ball_geometry(**changes: object) -> SceneGeometry:
    """What a model is told of the scene."""
    geometry = SceneGeometry(ball_cameras(), None, None, near_far=(2.0, 6.0), has_alpha=True)
    geometry = replace(geometry, **changes)
    return replace(geometry, cut_out=changes.get("cut_out", geometry.has_alpha))


def toy_config(**changes: object) -> Config:
    """Steps of milliseconds, and few of them: the learning rates make up for it."""
    settings = dict(steps=160, coarse_steps=60, rays=256, voxels=20**3, base_voxels=20**3, coarse_voxels=18**3)
    settings |= dict(growths=2, grow_every=25, mask_every=30, lr_decay_steps=160, lr_density=0.5, color_channels=3)
    settings |= dict(width=8, lr_net=1e-2, tv_dense_until=60, target_encoding="none")
    return Config(**(settings | changes))


def training_config(scene: Path, out: Path, model: Config, **changes: object) -> TrainConfig:
    """A resolved configuration that trains `model` on a scene of `write_ball`."""
    config = default_config(scene, method="dvgo", preset="quick", device="cpu")
    return resolve(replace(config, **({"model": model, "out": out, "threads": 1, "quiet": True} | changes)))
