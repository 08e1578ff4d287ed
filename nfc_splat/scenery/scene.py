"""What a scene is made of: parts with materials, lights, and the light that comes from outside it.

Symbols: L lights, V vertices. Radiometry is in arbitrary units in which a white surface under irradiance 1 shows as 1.
"""

from dataclasses import dataclass

import numpy as np

from nfc_splat.scenery.shapes import Mesh
from nfc_splat.scenery.textures import Texture


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        texture: its diffuse colour.
        emission: light it gives off, as a multiple of its colour. Seen by the camera; what it sheds on other
            surfaces is a `Lights` entry.
        gloss: strength of the highlights, 0 for a matt surface.
        shininess: sharpness of the highlights (a Blinn-Phong exponent).
        opaque: whether it casts shadows and receives or reflects light in the bake.
        thin: a sheet lit through from either side.
    """

    texture: Texture
    emission: float = 0.0
    gloss: float = 0.0
    shininess: float = 40.0
    opaque: bool = True
    thin: bool = False


@dataclass(frozen=True)
class Part:
    """A named mesh of one material."""

    name: str
    mesh: Mesh
    material: Material


@dataclass(frozen=True)
class Lights:
    """Light samples; an extended light is many of them.

    Attributes:
        positions: [L, 4] homogeneous: (point, 1), or (direction towards the light, 0) for one at infinity.
        powers: [L, 3] linear colour: irradiance at 1 m facing a point, or facing one at infinity.
        facing: [L, 3] unit normal of a one-sided emitter, or zero for one that shines all around.
    """

    positions: np.ndarray
    powers: np.ndarray
    facing: np.ndarray


@dataclass(frozen=True)
class Scenery:
    """A scene before light: its parts, its lights, and the colour [3] of the sky around it (zero indoors)."""

    parts: list[Part]
    lights: list[Lights]
    sky: np.ndarray
    exposure: float = 1.0


def sunlight(direction: np.ndarray, power: np.ndarray, spread: float, samples: int) -> Lights:
    """A sun in `direction` (towards it) whose disc has the half-angle `spread` in radians, as `samples` lights."""
    direction = direction / np.linalg.norm(direction)
    side = np.cross(direction, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    k = np.arange(samples)
    radius, angle = np.tan(spread) * np.sqrt((k + 0.5) / samples), k * np.pi * (3 - np.sqrt(5))
    offset = radius[:, None] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other)
    towards = direction + offset
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    return Lights(
        positions=np.concatenate([towards, np.zeros((samples, 1))], axis=1),
        powers=np.broadcast_to(power / samples, (samples, 3)),
        facing=np.zeros((samples, 3)),
    )


def panel(corner: np.ndarray, u: np.ndarray, w: np.ndarray, power: np.ndarray, shape: tuple[int, int]) -> Lights:
    """A rectangle that shines towards u x w, as a grid of lights; `power` is its total, at 1 m in front."""
    s, t = ((np.arange(n) + 0.5) / n for n in shape)
    points = corner + s[:, None, None] * u + t[None, :, None] * w
    points = points.reshape(-1, 3)
    normal = np.cross(u, w)
    normal /= np.linalg.norm(normal)
    count = len(points)
    return Lights(
        positions=np.concatenate([points, np.ones((count, 1))], axis=1),
        powers=np.broadcast_to(power / count, (count, 3)),
        facing=np.broadcast_to(normal, (count, 3)),
    )


def bulb(center: np.ndarray, radius: float, power: np.ndarray, samples: int) -> Lights:
    """A luminous ball as `samples` lights spread over its surface."""
    k = np.arange(samples)
    z = 1 - (2 * k + 1) / samples
    angle = k * np.pi * (3 - np.sqrt(5))
    around = np.sqrt(1 - z * z)
    points = center + radius * np.stack([around * np.cos(angle), around * np.sin(angle), z], axis=1)
    return Lights(
        positions=np.concatenate([points, np.ones((samples, 1))], axis=1),
        powers=np.broadcast_to(power / samples, (samples, 3)),
        facing=np.zeros((samples, 3)),
    )
