"""A tiny scene that moves: as tensors, for the tests of Gaussians that do, and as a folder of pictures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from splat_toys import BACKGROUND, SIZE, orbit, random_tensors, toy_config, toy_geometry

from nfc_splat.cameras import Cameras
from nfc_splat.fields import gaussians
from nfc_splat.fields.deformed_gaussians import Config
from nfc_splat.fields.recipe import Batch, SceneGeometry


def moving_config(**overrides: object) -> Config:
    """A config that runs in milliseconds a step; the plain-torch rasteriser and HexPlane compile nothing."""
    settings = dict(steps=40, coarse_steps=15, decay_steps=25, backend="reference", init_points=40, sh_degree_every=5)
    settings |= dict(init_cube=0.0)
    settings |= dict(refine_start=2, refine_stop=20, refine_every=5, reset_every=0, prune_large_from=10)
    settings |= dict(prune_every=1, prune_above=0, plane_channels=5, plane_nodes=4, deformation_width=8, time_rows=6)
    settings |= dict(lr_means=2e-3, lr_means_final=2e-4, lr_sh0=2e-2, lr_scales=1e-2)
    return Config(**(settings | overrides))


def timed_orbit(count: int = 6) -> Cameras:
    """Cameras around the origin, one after the other in time."""
    return replace(orbit(count), times=torch.linspace(0, 1, count))


def moving_truth(count: int = 12) -> gaussians.Model:
    """The Gaussians that the toy pictures show, at time 0."""
    return gaussians.Model(toy_config(), random_tensors(count), active_sh_degree=1).eval()


def moving_batches(cameras: Cameras) -> list[Batch]:
    """One batch per camera: a dozen random Gaussians that rise with time."""
    truth = moving_truth()
    at_rest = truth.means.detach().clone()
    batches = []
    for index in range(len(cameras)):
        with torch.no_grad():
            truth.means.copy_(at_rest + torch.tensor([0.0, 0.0, 0.6]) * cameras.times[index])
            drawn = truth.render(cameras[index], background=BACKGROUND)
        batches.append(Batch(cameras[index], None, drawn.color.clamp(0, 1), None, BACKGROUND))
    return batches


def moving_geometry(cameras: Cameras) -> SceneGeometry:
    return toy_geometry(cameras)


def write_moving_scene(folder: Path, *, views: int = 8, times: str = "moving") -> Path:
    """A Blender-format scene of a dark disc that crosses a white picture; every camera is at its own place.

    `times` is "moving" (0 to 7 in training and to 9 in testing), "constant" or "none".
    """
    rows, columns = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")
    for split, moments in (("train", np.arange(views)), ("test", np.array([1, 9]))):
        (folder / split).mkdir(parents=True)
        frames = []
        for index, moment in enumerate(moments):
            inside = (rows - SIZE / 2) ** 2 + (columns - 4 - 2 * moment) ** 2 < 16
            image = np.where(inside[..., None], (200, 60, 20), 255).astype(np.uint8)
            Image.fromarray(image).save(folder / split / f"{index}.png")
            pose = np.eye(4)
            angle = 0.2 * math.pi * (index / len(moments) - 0.5)
            pose[:3, :3] = [
                [math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)],
            ]  # fmt: skip
            pose[:3, 3] = pose[:3, :3] @ [0, 0, 4.0]  # looks along its -z at the origin
            frame = {"file_path": f"{split}/{index}", "transform_matrix": pose.tolist()}
            if times != "none":
                frame["time"] = float(moment) if times == "moving" else 0.5
            frames.append(frame)
        text = json.dumps({"camera_angle_x": 0.7, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder
