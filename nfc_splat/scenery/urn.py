"""The built-in object: a fluted, painted urn with two ring handles, glazed, seen from a dome of cameras.

Its bowl is a hollow that no silhouette shows, the handles are thin and have holes, and the cameras see all of it but
the underside of the foot. World coordinates as in the NeRF synthetic scenes: the object lies within [-1, 1]^3, z is up,
cameras are 4 away.
"""

import numpy as np

from nfc_splat.scenery import pictures, textures
from nfc_splat.scenery.room import look
from nfc_splat.scenery.scene import Material, Part, Scenery, sunlight
from nfc_splat.scenery.shapes import lathe, torus_knot

# (radius, z) from the bottom's centre, up the outside, over the rim and down the inside.
PROFILE = (
    (0, -0.82), (0.20, -0.82), (0.25, -0.80), (0.24, -0.75), (0.15, -0.67), (0.14, -0.59), (0.28, -0.46), (0.49, -0.25),
    (0.61, 0.02), (0.61, 0.21), (0.54, 0.41), (0.49, 0.54), (0.52, 0.67), (0.59, 0.80), (0.61, 0.82), (0.57, 0.81),
    (0.47, 0.68), (0.43, 0.54), (0.48, 0.39), (0.55, 0.20), (0.54, 0.02), (0.43, -0.21), (0.23, -0.38), (0.0, -0.43),
)  # fmt: skip
FLUTES, RIPPLE, TWIST = 10, 0.045, 1.1
# Of the ring handles: radius, thickness, height of the middle, and how far out the wall is there on average.
RING, BAR, HEIGHT, WALL = 0.14, 0.03, 0.16, 0.585
FIELD_OF_VIEW = 0.6911112070083618  # radians across, NeRF synthetic's
DISTANCE = 4.031128874149275


def build(seed: int = 0) -> Scenery:
    """The urn under a pale sky, a warm sun and a cool fill."""
    rng = np.random.default_rng(seed)
    profile = smooth(np.asarray(PROFILE), 10)
    mesh = lathe(profile, 192, ripple=RIPPLE, flutes=FLUTES, twist=TWIST)
    width, height = mesh.uvs.max(axis=0)
    glaze = Material(pictures.urn_bands(rng, float(width), float(height)), gloss=0.06, shininess=50)
    sun = sunlight(np.array([0.7, -0.5, 0.9]), np.array([2.1, 1.9, 1.62]), 0.12, 16)
    fill = sunlight(np.array([-0.8, 0.5, 0.35]), np.array([0.24, 0.30, 0.38]), 0.3, 16)
    parts = [Part("urn", mesh, glaze), *_handles()]
    return Scenery(parts, [sun, fill], sky=np.array([0.38, 0.41, 0.46]), exposure=1.35)


def _handles() -> list[Part]:
    """Two upright rings, each with one side within the wall."""
    wound = Material(textures.stripes(["7a2a20", "e6d8b8", "1f3a5c", "c98f3a"], [0.05, 0.03, 0.06, 0.03]), gloss=0.06)
    out = WALL * (1 + RIPPLE * np.cos(TWIST * HEIGHT)) + RING
    ring = torus_knot(1, 0, RING, BAR)
    sides = ((0.0, out), (np.pi, -out))
    return [
        Part(f"handle {i}", ring.moved((x, 0.0, HEIGHT), yaw=yaw, pitch=np.pi / 2), wound)
        for i, (yaw, x) in enumerate(sides)
    ]


def smooth(points: np.ndarray, steps: int) -> np.ndarray:
    """A Catmull-Rom curve through `points` [U, 2], `steps` points per segment, the ends kept."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    s = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        pieces.append(b + 0.5 * s * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * (3 * (b - c) + d - a))))
    curve = np.concatenate([*pieces, points[-1:]])
    curve[:, 0] = np.maximum(curve[:, 0], 0)
    return curve


def training_poses(views: int, seed: int = 0) -> np.ndarray:
    """[views, 4, 4] camera-to-world poses (OpenCV axes), evenly over the dome in a random order and turn."""
    rng = np.random.default_rng([seed, 1])
    k = rng.permutation(views) + 0.5
    height = 0.02 + 0.96 * k / views
    turn = np.pi * (1 + np.sqrt(5)) * k + 2 * np.pi * rng.random()
    around = np.sqrt(1 - height**2)
    directions = np.stack([around * np.cos(turn), around * np.sin(turn), height], axis=-1)
    return np.stack([look(DISTANCE * direction, np.zeros(3)) for direction in directions])


def test_poses(views: int) -> np.ndarray:
    """[views, 4, 4] poses along one orbit 30 degrees above the horizon."""
    turn = 2 * np.pi * (np.arange(views) + 0.5) / views
    level = np.radians(30.0)
    directions = np.stack(
        [np.cos(level) * np.cos(turn), np.cos(level) * np.sin(turn), np.full(views, np.sin(level))], axis=-1
    )
    return np.stack([look(DISTANCE * direction, np.zeros(3)) for direction in directions])
