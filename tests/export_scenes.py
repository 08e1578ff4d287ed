"""A scene in closed form for the tests of mesh export, and what makes a mesh whole."""

import math

import numpy as np
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.export.fusion import DepthViews
from nfc_splat.rendering import Rendering, SceneModel
from nfc_splat.rendering.paths import look_at


def cameras_around(count: int, distance: float = 3.0, center=(0.0, 0.0, 0.0), scale: int = 1) -> Cameras:
    """Cameras spread over a sphere (a spiral), looking at its centre; not centred on their images."""
    index = np.arange(count) + 0.5
    polar, around = np.arccos(1 - 2 * index / count), math.pi * (1 + 5**0.5) * index
    directions = np.stack([np.cos(around) * np.sin(polar), np.sin(around) * np.sin(polar), np.cos(polar)], 1)
    middle = torch.tensor(center, dtype=torch.float64)
    origins = middle + distance * torch.from_numpy(directions)
    viewmats = torch.linalg.inv(look_at(origins, middle.expand_as(origins), torch.tensor([0.0, 0.0, 1.0]).double()))
    width, height = 96 * scale, 80 * scale
    K = torch.tensor([[90.0 * scale, 0, width / 2 + 3.3], [0, 92.0 * scale, height / 2 - 2.1], [0, 0, 1]])
    return Cameras.pinhole(viewmats.float(), K, width, height)


class Ball(SceneModel):
    """A ball with the colour of its normals, drawn exactly. Outside of it `haze` is the alpha, at depth 1."""

    request = "image"

    def __init__(self, radius: float = 1.0, center=(0.0, 0.0, 0.0), haze: float = 0.0):
        super().__init__()
        self.radius, self.haze = radius, haze
        self.register_buffer("center", torch.tensor(center, dtype=torch.float64))

    def render(self, cameras, pixels=None, *, background):
        rays = cameras.rays(pixels)
        origin, direction = rays.origins.double() - self.center, rays.directions.double()
        a, b = direction.square().sum(-1), (origin * direction).sum(-1)
        inside = b.square() - a * (origin.square().sum(-1) - self.radius**2)
        depth = ((-b - inside.clamp_min(0).sqrt()) / a)[..., None]
        hit = inside[..., None] > 0
        color = 0.5 + 0.5 * (origin + depth * direction) / self.radius
        alpha = torch.where(hit, 1.0, self.haze).float()
        drawn = torch.where(hit, color, 0.9).float() * alpha + (1 - alpha) * background
        return Rendering(drawn, alpha, torch.where(hit, depth, 1.0).float())

    @classmethod
    def from_tensors(cls, config, tensors):
        raise NotImplementedError


def as_images(views: DepthViews, values: np.ndarray) -> list[torch.Tensor]:
    """`values` [P, ...] of all pixels as one image per view."""
    counts = views.sizes.prod(1)
    return [
        torch.from_numpy(values[first : first + count].reshape(height, width, *values.shape[1:])).double()
        for first, count, (width, height) in zip(views.firsts, counts, views.sizes, strict=True)
    ]


def area_and_volume(vertices: np.ndarray, triangles: np.ndarray) -> tuple[float, float]:
    """Area, and the volume enclosed, which is positive if the triangles face outwards."""
    corners = vertices[triangles] - vertices.mean(0)
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(crossed, axis=1).sum() / 2), float((corners[:, 0] * crossed).sum() / 6)


def is_closed(triangles: np.ndarray) -> bool:
    """Whether each edge of a triangle is that of exactly one other, in the other direction."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).astype(np.int64)
    count = triangles.max() + 1
    ahead, back = edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0]
    return len(np.unique(ahead)) == len(ahead) and np.array_equal(np.unique(ahead), np.unique(back))
