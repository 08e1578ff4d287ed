"""The built-in room: a shell of 5.6 x 4.4 x 2.6 m with a window, and the cameras' path through it.

World coordinates are metres, z up, origin on the floor in the middle of the room. `furnish` in
`nfc_splat.scenery.furniture` fills it.
"""

import numpy as np

from nfc_splat.scenery import pictures, textures
from nfc_splat.scenery.furniture import furnish
from nfc_splat.scenery.scene import Material, Part, Scenery, bulb, panel, sunlight
from nfc_splat.scenery.shapes import Mesh, box, merge, patch

HALF_X, HALF_Y, HEIGHT = 2.8, 2.2, 2.6
WINDOW_Y, WINDOW_Z = (-0.95, 0.95), (0.85, 2.2)
FIELD_OF_VIEW = np.radians(80.0)  # across
REVEAL = 0.22  # depth of the window's recess
UP = np.array([0.0, 0.0, 1.0])


def build(seed: int = 0) -> Scenery:
    """The furnished room and its lights."""
    rng = np.random.default_rng(seed)
    parts = [*_shell(rng), *_trim(rng), *_window(rng), *furnish(rng)]
    sun = sunlight(np.array([0.78, -0.30, 0.56]), 4.2 * np.array([1.0, 0.88, 0.70]), 0.02, 9)
    window = panel(
        np.array([HALF_X + 0.1, WINDOW_Y[0], WINDOW_Z[0]]),
        UP * (WINDOW_Z[1] - WINDOW_Z[0]),
        np.array([0.0, WINDOW_Y[1] - WINDOW_Y[0], 0.0]),
        4.2 * np.array([0.88, 0.96, 1.08]),
        (4, 5),
    )
    lamp = bulb(np.array([1.35, 1.72, 1.52]), 0.09, 0.55 * np.array([1.0, 0.72, 0.42]), 10)
    pendant = bulb(np.array([0.0, 0.0, 2.08]), 0.13, 0.75 * np.array([1.0, 0.86, 0.68]), 10)
    return Scenery(parts, [sun, window, lamp, pendant], sky=np.zeros(3), exposure=1.9)


def path(views: int) -> np.ndarray:
    """[views, 4, 4] camera-to-world poses (OpenCV axes) along one loop around the middle of the room.

    The camera looks across the room and sweeps to and fro, so that every wall, the floor and the ceiling are seen
    from several places.
    """
    t = np.arange(views) / views
    turn = 2 * np.pi * t
    position = np.stack([1.3 * np.cos(turn), 0.85 * np.sin(turn), 1.42 + 0.2 * np.sin(2 * turn)], axis=-1)
    azimuth = turn + np.pi + 0.9 * np.sin(3 * turn)
    pitch = -0.15 + 0.42 * np.sin(5 * turn)
    forward = np.stack([np.cos(azimuth) * np.cos(pitch), np.sin(azimuth) * np.cos(pitch), np.sin(pitch)], axis=-1)
    return np.stack([look(p, p + f) for p, f in zip(position, forward, strict=True)])


def look(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[4, 4] camera-to-world pose in OpenCV axes, upright, at `position` looking at `target`."""
    forward = target - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, UP)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=-1)
    return pose


def wall(corner: tuple[float, float], along: tuple[float, float], z0: float, z1: float) -> Mesh:
    """An upright patch from `corner`, `along` in the plan; it faces along x up. uvs are (along, height)."""
    mesh = patch((*corner, z0), (*along, 0.0), (0.0, 0.0, z1 - z0))
    return mesh.with_uvs(lambda uvs: uvs + np.array([0.0, z0]))


def _shell(rng: np.random.Generator) -> list[Part]:
    width, depth = 2 * HALF_X, 2 * HALF_Y
    floor = patch((-HALF_X, -HALF_Y, 0), (width, 0, 0), (0, depth, 0))
    ceiling = patch((-HALF_X, -HALF_Y, HEIGHT), (0, depth, 0), (width, 0, 0))
    north = wall((-HALF_X, HALF_Y), (width, 0), 0, HEIGHT)
    south = wall((HALF_X, -HALF_Y), (-width, 0), 0, HEIGHT)
    west = wall((-HALF_X, -HALF_Y), (0, depth), 0.9, HEIGHT)
    wainscot = wall((-HALF_X, -HALF_Y), (0, depth), 0.0, 0.9)
    y0, y1 = WINDOW_Y
    east = merge(
        [
            wall((HALF_X, HALF_Y), (0, y1 - HALF_Y), 0, HEIGHT),
            wall((HALF_X, y0), (0, -HALF_Y - y0), 0, HEIGHT),
            wall((HALF_X, y1), (0, y0 - y1), 0, WINDOW_Z[0]),
            wall((HALF_X, y1), (0, y0 - y1), WINDOW_Z[1], HEIGHT),
        ]
    )
    boards = textures.planks(rng, "c79a66", "7a4e2c")
    panels = textures.upright(textures.planks(rng, "6f8578", "5c7266", width=0.11, rows=10, contrast=0.5))
    return [
        Part("floor", floor, Material(boards)),
        Part("ceiling", ceiling, Material(textures.plaster(rng, "ece6da", 0.03))),
        Part("north wall", north, Material(textures.fans("1f5157", "7f8560"))),
        Part("south wall", south, Material(textures.bricks(rng))),
        Part("west wall", west, Material(textures.plaster(rng, "cf8f5a", 0.06))),
        Part("wainscot", wainscot, Material(panels)),
        Part("east wall", east, Material(textures.plaster(rng, "dfd6c4", 0.05))),
    ]


def _trim(rng: np.random.Generator) -> list[Part]:
    """Skirting boards, rails, mouldings and beams."""
    white = Material(textures.plaster(rng, "e9e4d8", 0.02))
    boards, crowns = [], []
    for y in (-HALF_Y + 0.01, HALF_Y - 0.01):
        boards.append(box((0, y, 0.06), (2 * HALF_X, 0.02, 0.12), 0.1))
        crowns.append(box((0, y * 0.99, HEIGHT - 0.03), (2 * HALF_X, 0.06, 0.06), 0.1))
    for x in (-HALF_X + 0.01, HALF_X - 0.01):
        boards.append(box((x, 0, 0.06), (0.02, 2 * HALF_Y, 0.12), 0.1))
        crowns.append(box((x * 0.99, 0, HEIGHT - 0.03), (0.06, 2 * HALF_Y, 0.06), 0.1))
    boards.append(box((-HALF_X + 0.02, 0, 0.92), (0.04, 2 * HALF_Y, 0.06), 0.1))
    beams = [
        box((x, 0, HEIGHT - 0.08), (0.16, 2 * HALF_Y, 0.16), faces="xXz").with_uvs(lambda uvs: uvs[:, ::-1])
        for x in (-1.75, 0.0, 1.75)
    ]
    return [
        Part("trim", merge(boards + crowns), white),
        Part("beams", merge(beams), Material(textures.wood(rng, "8a5c36", "5a3820"))),
    ]


def _window(rng: np.random.Generator) -> list[Part]:
    (y0, y1), (z0, z1) = WINDOW_Y, WINDOW_Z
    outer = HALF_X + REVEAL
    width, height = y1 - y0, z1 - z0
    reveal = merge(
        [
            patch((HALF_X, y0, z0), (REVEAL, 0, 0), (0, width, 0)),
            patch((HALF_X, y0, z1), (0, width, 0), (REVEAL, 0, 0)),
            patch((HALF_X, y0, z0), (0, 0, height), (REVEAL, 0, 0)),
            patch((HALF_X, y1, z0), (REVEAL, 0, 0), (0, 0, height)),
        ]
    )
    bars = [box((outer - 0.05, y, (z0 + z1) / 2), (0.05, 0.05, height)) for y in (y0 + 0.025, 0.0, y1 - 0.025)]
    bars += [box((outer - 0.05, 0, z), (0.05, width, 0.05)) for z in (z0 + 0.025, z0 + 0.9, z1 - 0.025)]
    sill = box((HALF_X - 0.02, 0, z0 - 0.02), (0.2, width + 0.16, 0.04))
    view = wall((outer, y1), (0, -width), z0, z1).with_uvs(lambda uvs: uvs - np.array([0.0, z0]))
    scenery = Material(pictures.outdoors(rng, width, height), emission=1.15, opaque=False)
    white = Material(textures.plaster(rng, "f0ece2", 0.02))
    return [
        Part("window frame", merge([reveal, *bars, sill]), white),
        Part("view", view, scenery),
    ]
