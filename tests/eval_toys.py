"""Scenes in closed form for the tests of the doors: a coloured disc as a model, a coloured sphere as photographs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from nfc_splat.cameras import Cameras
from nfc_splat.rendering import Rendering, SceneModel
from nfc_splat.rendering.paths import look_at


class Disc(SceneModel):
    """Coloured by the viewing direction, `brightness` times; opaque within half a unit of the optical axis."""

    request: ClassVar[Literal["image", "rays"]] = "image"

    def __init__(self, brightness: float = 1.0):
        super().__init__()
        self.brightness = nn.Parameter(torch.tensor(brightness))
        self.dropout = nn.Dropout(0.9)  # spoils the picture unless the model is in eval mode

    def render(self, cameras: Cameras, pixels: Tensor | None = None, *, background: Tensor) -> Rendering:
        directions = cameras.rays(pixels).directions
        alpha = (directions[..., :2].norm(dim=-1, keepdim=True) < 0.5).to(directions)
        color = self.dropout(self.brightness * (0.5 + 0.5 * torch.sin(4 * directions)))
        return Rendering(color * alpha + (1 - alpha) * background, alpha, 2.5 * alpha)

    @classmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor]) -> "Disc":
        return cls(float(tensors["brightness"]))


def cameras(count: int, width: int = 40, height: int = 30) -> Cameras:
    """`count` pinhole cameras, moved sideways a little."""
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, 0, 3] = torch.linspace(-0.2, 0.2, count)
    K = torch.tensor([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]])
    return Cameras.pinhole(viewmats, K, width, height)


class ToySplit:
    """Photographs of `Disc`, the later the noisier."""

    def __init__(self, count: int = 5, *, noise: float = 0.02, masked: bool = False, size: tuple[int, int] = (40, 30)):
        self.names = [f"images/view {i}.png" for i in range(count)]
        self.cameras = cameras(count, *size)
        self.noise, self.masked = noise, masked

    def __len__(self) -> int:
        return len(self.names)

    def target(self, index: int, background: Tensor) -> Tensor:
        clean = Disc().eval().render(self.cameras[index], background=background).color[0].detach()
        generator = torch.Generator().manual_seed(index)
        return (clean + self.noise * index * torch.randn(clean.shape, generator=generator)).clamp(0, 1)

    def mask(self, index: int) -> Tensor | None:
        if not self.masked:
            return None
        mask = torch.zeros(self.cameras.height, self.cameras.width)
        mask[5:-5, 5:-5] = 1
        return mask


def sphere_picture(camera: Cameras) -> Tensor:
    """RGBA [H, W, 4] of one camera's view of the unit sphere, coloured by its normal."""
    rays = camera.rays()
    origin, direction = rays.origins[0], torch.nn.functional.normalize(rays.directions[0], dim=-1)
    along = -(origin * direction).sum(-1, keepdim=True)
    nearest = (origin + along * direction).square().sum(-1, keepdim=True)
    hit = nearest < 1
    point = origin + (along - (1 - nearest).clamp_min(0).sqrt()) * direction
    color = 0.5 + 0.5 * torch.sin(3 * point)
    return torch.cat([torch.where(hit, color, 0.0), hit.to(color)], -1)


def ring_of_cameras(count: int, size: int = 32, radius: float = 4.0, phase: float = 0.0) -> Cameras:
    """`count` cameras around the origin, z up, looking at it from a little above."""
    angles = phase + 2 * torch.pi * torch.arange(count, dtype=torch.float64) / count
    centers = radius * torch.stack([angles.cos(), angles.sin(), torch.full_like(angles, 0.4)], -1)
    poses = look_at(centers, torch.zeros_like(centers), torch.tensor([0.0, 0, 1], dtype=torch.float64))
    focal = 0.5 * size / 0.4
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras.pinhole(torch.linalg.inv(poses).float(), K, size, size)


def write_blender_scene(folder: Path, *, train: int = 8, test: int = 3, size: int = 32) -> Path:
    """A scene in Blender's layout: photographs of a coloured sphere. Returns `folder`."""
    for split, count, phase in (("train", train, 0.0), ("test", test, 0.2)):
        cameras = ring_of_cameras(count, size, phase=phase)
        (folder / split).mkdir(parents=True, exist_ok=True)
        frames = []
        for index in range(count):
            pixels = (255 * sphere_picture(cameras[index]) + 0.5).byte().numpy()
            Image.fromarray(pixels).save(folder / split / f"r_{index}.png")
            pose = torch.linalg.inv(cameras.viewmats[index].double())
            pose[:, 1:3] *= -1  # Blender looks along -z with y up
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
        record = {"camera_angle_x": 2 * math.atan(0.4), "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(record))
    return folder
