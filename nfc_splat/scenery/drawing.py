"""Drawing views of a baked scene.

Symbols: H rows, W columns, S sub-pixels along each side of a pixel, R rays.
"""

from dataclasses import dataclass

import numpy as np

from nfc_splat.scenery.shading import Shader

BAND = 1 << 19  # rays cast at once, which bounds the memory


@dataclass(frozen=True)
class Lens:
    """A pinhole camera's inside: pixels, and the focal length in pixels; the axis meets the image's middle."""

    width: int
    height: int
    focal: float

    @classmethod
    def of_angle(cls, width: int, height: int, across: float) -> "Lens":
        """With a horizontal field of view of `across` radians."""
        return cls(width, height, 0.5 * width / float(np.tan(0.5 * across)))

    def directions(self, camera_to_world: np.ndarray, subpixels: int) -> np.ndarray:
        """[H * S, W * S, 3] float32 world directions of camera z 1 through the centres of the sub-pixels.

        Args:
            camera_to_world: [4, 4] in OpenCV axes.
            subpixels: S.
        """
        x = ((np.arange(self.width * subpixels) + 0.5) / subpixels - self.width / 2) / self.focal
        y = ((np.arange(self.height * subpixels) + 0.5) / subpixels - self.height / 2) / self.focal
        rows = y[:, None] * camera_to_world[:3, 1] + camera_to_world[:3, 2]
        return (x[:, None] * camera_to_world[:3, 0] + rows[:, None]).astype(np.float32)


@dataclass(frozen=True)
class View:
    """One picture.

    Attributes:
        color: [H, W, 3] float32 in [0, 1], sRGB, straight (not premultiplied) where `alpha` is below 1.
        alpha: [H, W] float32 share of the pixel that the scene covers.
        depth: [H, W] float32 camera z at the pixel's centre in metres, 0 where that ray leaves the scene.
    """

    color: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray


def draw(shader: Shader, lens: Lens, camera_to_world: np.ndarray, subpixels: int) -> View:
    """The view from `camera_to_world` [4, 4] (OpenCV axes); each pixel is the mean of subpixels squared rays."""
    rays = lens.directions(camera_to_world, subpixels)
    rows = max(1, BAND // (lens.width * subpixels**2))
    light, cover = [], []
    for top in range(0, lens.height, rows):
        band = rays[top * subpixels : (top + rows) * subpixels]
        shown, hit = _radiance(shader, camera_to_world[:3, 3], band.reshape(-1, 3), 1 / (lens.focal * subpixels))
        grid = (band.shape[0] // subpixels, subpixels, lens.width, subpixels)
        light.append(shown.reshape(*grid, 3).sum(axis=(1, 3)))
        cover.append(hit.reshape(grid).sum(axis=(1, 3), dtype=np.float32))
    count = np.concatenate(cover)
    color = encode(np.concatenate(light) / np.maximum(count, 1)[..., None])
    center = lens.directions(camera_to_world, 1).reshape(-1, 3)
    distance = shader.geometry.cast(camera_to_world[:3, 3], center).distance.reshape(count.shape)
    return View(color, count / subpixels**2, np.where(np.isfinite(distance), distance, np.float32(0)))


def _radiance(
    shader: Shader, origin: np.ndarray, directions: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Linear display colours [R, 3] and hits [R] of rays `spacing` apart at distance 1."""
    hits = shader.geometry.cast(origin, directions)
    footprint = np.where(hits.hit, hits.distance, 1.0).astype(np.float32) * np.float32(spacing)
    radiance = shader.diffuse(hits, footprint)
    glossy, shine = shader.highlights(hits, origin, directions)
    radiance[glossy] += shine
    return tone(shader.exposure * radiance) * hits.hit[:, None], hits.hit


def tone(radiance: np.ndarray) -> np.ndarray:
    """Linear display value in [0, 1): proportional in the shadows, rolling off towards white."""
    return 1.0 - np.exp(-radiance)


def encode(linear: np.ndarray) -> np.ndarray:
    """The sRGB transfer curve."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)
