"""What stands in the built-in room."""

from itertools import pairwise

import numpy as np

from nfc_splat.scenery import pictures, textures
from nfc_splat.scenery.scene import Material, Part
from nfc_splat.scenery.shapes import (
    Mesh,
    box,
    cylinder,
    lathe,
    merge,
    patch,
    rounded_box,
    sphere,
    surface,
    torus_knot,
)


def furnish(rng: np.random.Generator) -> list[Part]:
    """Every piece, in place."""
    oak = Material(textures.wood(rng, "c08a54", "8a5a30"))
    walnut = Material(textures.wood(rng, "7a4d30", "4a2c1a"))
    return [
        *_rug(rng),
        *_sofa(rng, walnut),
        *_coffee_table(rng, oak),
        *_bookcase(rng, walnut),
        *_sideboard(rng, oak),
        *_pedestal(rng),
        *_floor_lamp(rng),
        *_pendant(),
        *_plant(rng),
        *_seats(rng),
        *_wall_art(rng, walnut),
        *_curtains(),
        *_door(rng),
    ]


def _rug(rng: np.random.Generator) -> list[Part]:
    width, height = 2.7, 1.9
    slab = box((-0.05, -0.05, 0.006), (width, height, 0.012), faces="xXyYZ")
    return [Part("rug", slab, Material(pictures.rug(rng, width, height)))]


def _sofa(rng: np.random.Generator, wood: Material) -> list[Part]:
    cloth = Material(textures.tweed(rng, "c4763c", "8e4a26"))
    x, y = -0.55, 1.70
    body = [
        rounded_box((x, y, 0.25), (2.0, 0.85, 0.26), 0.06),
        rounded_box((x, y + 0.30, 0.58), (2.0, 0.24, 0.56), 0.09),
        rounded_box((x - 0.98, y, 0.38), (0.2, 0.86, 0.48), 0.08),
        rounded_box((x + 0.98, y, 0.38), (0.2, 0.86, 0.48), 0.08),
        rounded_box((x - 0.44, y - 0.08, 0.44), (0.86, 0.64, 0.16), 0.06),
        rounded_box((x + 0.44, y - 0.08, 0.44), (0.86, 0.64, 0.16), 0.06),
    ]
    feet = [cylinder(0.025, 0, 0.13).moved((x + sx * 0.88, y + sy * 0.34, 0)) for sx in (-1, 1) for sy in (-1, 1)]
    cushions = [
        (-0.72, 0.25, textures.chevrons(["e7dcc2", "2a5d6b", "e0a83a", "7d2f2b"], 0.2)),
        (-0.36, -0.15, textures.dots("24405f", "e8dfc8")),
        (0.70, -0.2, textures.stripes(["d8c9a4", "35614f", "d8c9a4", "b9452f"], [0.03, 0.05, 0.03, 0.03])),
    ]
    parts = [Part("sofa", merge(body), cloth), Part("sofa feet", merge(feet), wood)]
    for i, (dx, yaw, cover) in enumerate(cushions):
        pillow = rounded_box((0, 0, 0), (0.42, 0.15, 0.42), 0.075, 0.03).moved(pitch=-0.35)
        place = (x + dx, y + 0.06, 0.73)
        parts.append(Part(f"cushion {i}", pillow.moved(place, yaw=yaw), Material(cover)))
    return parts


def _coffee_table(rng: np.random.Generator, wood: Material) -> list[Part]:
    x, y = -0.30, 0.28
    top = cylinder(0.52, 0.39, 0.43, 64)
    legs = [
        cylinder(0.018, 0, 0.40, 16, top=0.03).moved((0.36 * np.cos(a), 0.36 * np.sin(a), 0.012))
        for a in np.pi / 4 + np.pi / 2 * np.arange(4)
    ]
    spines = Material(pictures.book_spines(rng))
    stack = []
    for i, (w, d, yaw) in enumerate(((0.27, 0.20, 0.3), (0.25, 0.18, 0.05), (0.21, 0.15, 0.5))):
        book = box((0, 0, 0), (w, d, 0.035), 0.03).with_uvs(
            lambda uvs, i=i: uvs[:, ::-1] * [0.9, 1.0] + [0.25 * i, 0.02]
        )
        stack.append(book.moved((0.22, -0.14, 0.448 + 0.036 * i), yaw=yaw))
    profile = [
        (0, 0),
        (0.07, 0),
        (0.08, 0.012),
        (0.15, 0.06),
        (0.18, 0.10),
        (0.17, 0.10),
        (0.14, 0.062),
        (0.07, 0.02),
        (0, 0.02),
    ]
    bowl = lathe(_rounded(profile, 6), 48)
    fruit = [sphere(0.045, 24).moved((0.065 * np.cos(a), 0.065 * np.sin(a), 0.065)) for a in (0.2, 2.3, 4.4)]
    fruit.append(sphere(0.045, 24).moved((0.0, 0.0, 0.125)))
    shift = (x - 0.16, y + 0.10, 0.43)
    orange = textures.plaster(rng, "e07a1c", 0.10)
    return [
        Part("coffee table", merge([top, *legs]).moved((x, y, 0)), wood),
        Part("stacked books", merge(stack).moved((x, y, 0)), spines),
        Part("bowl", bowl.moved(shift), Material(textures.stripes(["e9e4d6", "2f5f8a"], [0.05, 0.03]))),
        Part("oranges", merge(fruit).moved(shift), Material(orange)),
    ]


def _bookcase(rng: np.random.Generator, wood: Material) -> list[Part]:
    x0, y0, width, depth, height = -2.15, -2.18, 1.7, 0.32, 1.95
    board = 0.03
    levels = (0.06, 0.46, 0.84, 1.22, 1.58, height - board / 2)
    frame = [box((x0 + width / 2, y0 + depth / 2, z), (width, depth, board)) for z in levels]
    for x in (x0, x0 + width / 2, x0 + width):
        upright = box((x, y0 + depth / 2, height / 2), (board, depth, height))
        frame.append(upright.with_uvs(lambda uvs: uvs[:, ::-1]))
    frame.append(box((x0 + width / 2, y0 + 0.012, height / 2), (width, 0.012, height), faces="Y"))
    books = []
    for shelf, bottom in enumerate(levels[:-1]):
        room = levels[shelf + 1] - bottom - 2 * board
        for bay in range(2):
            books += _books(rng, x0 + bay * width / 2, width / 2, y0 + depth, bottom + board / 2, room)
    return [
        Part("bookcase", merge(frame), wood),
        Part("books", merge(books), Material(pictures.book_spines(rng))),
    ]


def _books(rng: np.random.Generator, x0: float, width: float, front: float, z: float, room: float) -> list[Mesh]:
    """A row of upright books on one shelf, a gap or two left."""
    result, x = [], x0 + 0.03
    while x < x0 + width - 0.09:
        if rng.random() < 0.10:
            x += rng.uniform(0.04, 0.16)
            continue
        thick, tall = rng.uniform(0.032, 0.06), min(room, rng.uniform(0.20, 0.31))
        deep = rng.uniform(0.17, 0.24)
        column = rng.integers(pictures.SPINES)
        volume = box((x + thick / 2, front - 0.03 - deep / 2, z + tall / 2), (thick, deep, tall), 0.06, faces="xXYZ")
        scale = [pictures.SPINE_WIDTH / thick, 0.98 * pictures.SPINE_HEIGHT / tall]
        # Sides take the spine's left edge, so that a book is one colour all around.
        across = np.where(np.abs(volume.normals[:, 1]) > 0.5, volume.uvs[:, 0] * scale[0], 0.004)
        along = np.where(np.abs(volume.normals[:, 2]) > 0.5, 0.003, volume.uvs[:, 1] * scale[1])
        uvs = np.stack([column * pictures.SPINE_WIDTH + across, along], axis=-1)
        result.append(volume.with_uvs(lambda _, uvs=uvs: uvs))
        x += thick + 0.003
    return result


def _sideboard(rng: np.random.Generator, wood: Material) -> list[Part]:
    x, y, height = -2.55, 0.05, 0.72
    carcass = [box((x, y, 0.42), (0.46, 1.7, 0.56)), box((x, y, height - 0.015), (0.50, 1.76, 0.03))]
    legs = [cylinder(0.02, 0, 0.15, 16).moved((x + sx * 0.18, y + sy * 0.75, 0)) for sx in (-1, 1) for sy in (-1, 1)]
    doors = [box((x + 0.235, y + dy, 0.42), (0.02, 0.52, 0.48)) for dy in (-0.56, 0.0, 0.56)]
    knobs = [sphere(0.02, 16).moved((x + 0.26, y + dy, 0.45)) for dy in (-0.36, 0.20, 0.36)]
    brass = Material(textures.flat("b98d46"), gloss=0.3, shininess=30)
    knot = torus_knot(2, 3, 0.11, 0.032).moved((x, y - 0.55, height + 0.11))
    vase = [
        (0, 0),
        (0.06, 0),
        (0.075, 0.01),
        (0.12, 0.12),
        (0.11, 0.22),
        (0.05, 0.32),
        (0.045, 0.36),
        (0.065, 0.40),
        (0.055, 0.40),
        (0.035, 0.36),
        (0.04, 0.32),
        (0, 0.30),
    ]
    glaze = textures.chevrons(["e8e0cc", "2e6f73", "e8e0cc", "15404f"], 0.15)
    ball = sphere(0.14, 64).moved((0, 0, 0.20), pitch=0.0)
    stand = cylinder(0.08, 0.0, 0.02, 32)
    stem = cylinder(0.012, 0.02, 0.08, 16)
    return [
        Part("sideboard", merge([*carcass, *legs]), wood),
        Part("sideboard doors", merge(doors), Material(textures.wood(rng, "d3a46e", "a87444"))),
        Part("knobs", merge(knobs), brass),
        Part("knot", knot, brass),
        Part("vase", lathe(_rounded(vase, 6), 64).moved((x, y + 0.02, height)), Material(glaze)),
        Part("globe", ball.moved((x, y + 0.55, height)), Material(pictures.globe(rng, 2 * np.pi * 0.14))),
        Part("globe stand", merge([stand, stem]).moved((x, y + 0.55, height)), wood),
    ]


def _pedestal(rng: np.random.Generator) -> list[Part]:
    x, y = 0.28, -1.78
    column = lathe(_rounded([(0, 0), (0.19, 0), (0.19, 0.06), (0.15, 0.10), (0.14, 0.12)], 4), 64)
    shaft = lathe(np.linspace((0.14, 0.12), (0.13, 0.74), 16), 96, ripple=0.05, flutes=16)
    head = lathe(_rounded([(0.13, 0.74), (0.17, 0.79), (0.18, 0.80), (0.18, 0.84), (0, 0.84)], 4), 64)
    ball = sphere(0.19, 96).moved((0, 0, 0.84 + 0.185))
    glazed = Material(textures.plaster(rng, "9c2430", 0.06), gloss=0.55, shininess=60)
    return [
        Part("pedestal", merge([column, shaft, head]).moved((x, y, 0)), Material(textures.marble(rng))),
        Part("glossy ball", ball.moved((x, y, 0)), glazed),
    ]


def _floor_lamp(rng: np.random.Generator) -> list[Part]:
    x, y = 1.35, 1.72
    base = [cylinder(0.15, 0, 0.025, 48), cylinder(0.012, 0.025, 1.42, 12)]
    shade = lathe(np.linspace((0.23, 1.36), (0.15, 1.70), 10), 48)
    linen = textures.stripes(["f2d9a6", "e2bd7c"], [0.02, 0.02])
    return [
        Part("lamp stand", merge(base).moved((x, y, 0)), Material(textures.flat("2c2a28"))),
        Part("lamp shade", shade.moved((x, y, 0)), Material(linen, emission=0.25, opaque=False, thin=True)),
    ]


def _pendant() -> list[Part]:
    cable = cylinder(0.008, 2.21, 2.44, 8)
    return [
        Part("pendant cable", cable, Material(textures.flat("2c2a28"))),
        Part(
            "pendant",
            sphere(0.15, 48).moved((0, 0, 2.08)),
            Material(textures.flat("f0dcb4"), emission=0.7, opaque=False),
        ),
    ]


def _plant(rng: np.random.Generator) -> list[Part]:
    x, y = 2.32, 1.72
    pot = lathe(
        _rounded(
            [(0, 0), (0.15, 0), (0.20, 0.34), (0.22, 0.36), (0.22, 0.40), (0.19, 0.40), (0.18, 0.36), (0, 0.36)], 5
        ),
        48,
    )
    leaves = []
    for i in range(26):
        turn, lean = 2.399 * i, rng.uniform(0.05, 0.45) * (0.4 + i / 26)
        tall, root = rng.uniform(0.55, 0.95), 0.02 + 0.10 * i / 26
        leaves.append(_blade(tall, lean, root, rng.uniform(-0.6, 0.6)).moved((0, 0, 0.34), yaw=turn))
    clay = textures.stripes(["b5643c", "b5643c", "d9c9ac"], [0.05, 0.05, 0.03])
    return [
        Part("pot", pot.moved((x, y, 0)), Material(textures.upright(clay))),
        Part("plant", merge(leaves).moved((x, y, 0)), Material(textures.leaf(rng), thin=True)),
    ]


def _blade(tall: float, lean: float, root: float, roll: float) -> Mesh:
    """One long leaf from the origin's neighbourhood, bent outwards along x."""
    s = np.linspace(0, 1, 14)[:, None]
    across = np.linspace(-1, 1, 5)[None, :]
    half = 0.032 * np.sin(np.pi * np.clip(0.18 + 0.82 * s, 0, 1)) ** 0.7 + 0.002
    bend = lean * s**1.6 * tall
    y = half * across
    points = np.stack([root + bend + 0.3 * half * across**2 + 0 * s, y + roll * 0.05 * s, tall * s + 0 * y], axis=-1)
    uvs = np.stack([0.03 + 0.9 * y, 0.8 * s + 0 * y], axis=-1)
    return surface(points, uvs=uvs)


def _seats(rng: np.random.Generator) -> list[Part]:
    knit = textures.tweed(rng, "d9cdb6", "9aa79b")
    pouf = lathe(
        _rounded([(0, 0), (0.22, 0), (0.33, 0.09), (0.34, 0.20), (0.28, 0.33), (0, 0.36)], 8),
        64,
        ripple=0.02,
        flutes=24,
    )
    cubes = [(1.05, -0.05, 0.3, "c23b2e"), (1.17, 0.12, 0.9, "e2ab33"), (0.98, 0.14, 0.1, "2f6d9c")]
    toys = [
        Part(
            f"block {i}",
            box((0, 0, 0.052 + 0.012), (0.104, 0.104, 0.104), 0.02).moved((x, y, 0), yaw=yaw),
            Material(textures.dots(code, "efe7d6", 0.052, 0.014)),
        )
        for i, (x, y, yaw, code) in enumerate(cubes)
    ]
    ring = torus_knot(1, 0, 0.19, 0.055, 96).moved((-1.32, -0.72, 0.067))
    hoop = Material(textures.stripes(["d8492f", "f0e6d0"], [0.1, 0.1]))
    return [Part("pouf", pouf.moved((0.72, -0.72, 0.012)), Material(knit)), *toys, Part("ring", ring, hoop)]


def _wall_art(rng: np.random.Generator, wood: Material) -> list[Part]:
    parts = []
    works = [
        (-1.30, 1.62, 0.46, 0.60, pictures.circles),
        (-0.42, 1.68, 0.92, 0.62, pictures.hills),
        (0.44, 1.62, 0.46, 0.60, pictures.blocks),
    ]
    for i, (x, z, width, height, paint) in enumerate(works):
        canvas = patch((x - width / 2, 2.165, z - height / 2), (width, 0, 0), (0, 0, height), 0.1)
        rails = [box((x, 2.175, z + s * (height / 2 + 0.02)), (width + 0.08, 0.05, 0.04)) for s in (-1, 1)]
        rails += [box((x + s * (width / 2 + 0.02), 2.175, z), (0.04, 0.05, height)) for s in (-1, 1)]
        parts += [
            Part(f"painting {i}", canvas, Material(paint(rng, width, height))),
            Part(f"frame {i}", merge(rails), wood),
        ]
    size = 0.44
    face = cylinder(size / 2, 0, 0.02, 48).with_uvs(lambda uvs: uvs + size / 2)
    rim = torus_knot(1, 0, size / 2, 0.02, 64)
    hang = lambda mesh: mesh.moved((-2.79, 0.05, 1.70), pitch=np.pi / 2, yaw=np.pi / 2)  # noqa: E731
    return [
        *parts,
        Part("clock", hang(face), Material(pictures.clock_face(size))),
        Part("clock rim", hang(rim), Material(textures.flat("3a3f44"))),
    ]


def _curtains() -> list[Part]:
    cloth = textures.stripes(["d9c7a0", "b0533a", "d9c7a0", "2f6468"], [0.09, 0.02, 0.04, 0.02])
    parts = []
    for name, y0 in (("left curtain", 0.92), ("right curtain", -1.42)):
        s = np.linspace(0, 1, 41)
        x = 2.70 + 0.035 * np.sin(2 * np.pi * 5 * s)
        z = np.linspace(0.03, 2.32, 32)
        points = np.stack(np.broadcast_arrays(x[None, :], (y0 + 0.5 * s)[None, :], z[:, None]), axis=-1)
        uvs = np.stack(np.broadcast_arrays(0.85 * s[None, :], z[:, None]), axis=-1)
        parts.append(Part(name, surface(points, uvs=uvs), Material(cloth, thin=True)))
    rod = cylinder(0.015, -1.55, 1.55, 12).moved(pitch=np.pi / 2).moved((2.70, 0, 2.34))
    return [*parts, Part("curtain rod", rod, Material(textures.flat("4a3a2a")))]


def _door(rng: np.random.Generator) -> list[Part]:
    x, y = 1.75, -2.17
    paint = Material(textures.plaster(rng, "2f4f5c", 0.04))
    leaf = [box((x, y, 1.01), (0.86, 0.05, 2.02), faces="xXYZ")]
    for dx in (-0.2, 0.2):
        for z, tall in ((0.50, 0.60), (1.38, 0.90)):
            leaf.append(box((x + dx, y + 0.03, z), (0.28, 0.03, tall)))
    casing = [box((x + s * 0.48, y, 1.04), (0.1, 0.07, 2.08)) for s in (-1, 1)]
    casing.append(box((x, y, 2.12), (1.06, 0.08, 0.1)))
    knob = sphere(0.032, 24).moved((x - 0.36, y + 0.07, 1.0))
    return [
        Part("door", merge(leaf), paint),
        Part("door casing", merge(casing), Material(textures.plaster(rng, "e9e4d8", 0.02))),
        Part("door knob", knob, Material(textures.flat("c09a52"), gloss=0.3, shininess=30)),
    ]


def _rounded(profile: list[tuple[float, float]], steps: int) -> np.ndarray:
    """A polyline [U, 2] resampled with `steps` points per segment."""
    points = np.asarray(profile, dtype=np.float64)
    s = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [a + s * (b - a) for a, b in pairwise(points)]
    return np.concatenate([*pieces, points[-1:]])
