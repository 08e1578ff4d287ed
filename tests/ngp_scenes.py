"""Small scenes for the tests of `ngp`: cameras on a circle about the origin, and photographs of a ball, drawn by
formula."""

import json
import math

import numpy as np
import torch
from PIL import Image

from nfc_splat.cameras import Cameras
from nfc_splat.fields.recipe import SceneGeometry

RADIUS, COLOR = 0.8, (0.9, 0.4, 0.2)
DISTANCE, ANGLE = 4.0, 0.7


def poses(count=6):
    """Camera to world [4, 4], OpenGL axes, looking at the origin from a circle."""
    for index in range(count):
        turn = index * 2 * math.pi / count
        backward = np.array([math.cos(turn), math.sin(turn), 0.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([np.cross([0, 0, 1], backward), [0, 0, 1], backward], 1)
        pose[:3, 3] = DISTANCE * backward
        yield pose


def cameras(count=6, size=24):
    flip = np.diag([1.0, -1, -1, 1])
    viewmats = torch.stack([torch.from_numpy(np.linalg.inv(pose @ flip)).float() for pose in poses(count)])
    focal = 0.5 * size / math.tan(ANGLE / 2)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras(viewmats, K.repeat(count, 1, 1), torch.full((count, 2), size))


def geometry(**changes):
    facts = {"cameras": cameras(), "points": None, "colors": None, "has_alpha": True}
    facts |= changes
    return SceneGeometry(**({"cut_out": facts["has_alpha"]} | facts))


def write_ball(folder, size=24, transparent=True):
    """Photographs of a ball from six sides, in Blender's format, the last one for testing."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    focal = 0.5 * size / math.tan(ANGLE / 2)
    toward = np.stack([(columns - size / 2) / focal, (rows - size / 2) / focal, np.ones_like(rows)], -1)
    along = DISTANCE * toward[..., 2] / np.linalg.norm(toward, axis=-1)
    hit = (DISTANCE**2 - along**2 < RADIUS**2)[..., None]
    image = np.where(hit, COLOR, 0.0 if transparent else 1.0)
    if transparent:
        image = np.concatenate([image, hit], -1)
    frames = {"train": [], "test": []}
    for index, pose in enumerate(poses()):
        split = "test" if index == 5 else "train"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().astype(np.uint8)).save(folder / split / f"{index}.png")
        frames[split].append({"file_path": f"{split}/{index}", "transform_matrix": pose.tolist()})
    for split, listed in frames.items():
        text = json.dumps({"camera_angle_x": ANGLE, "frames": listed})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder
