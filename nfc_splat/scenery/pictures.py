"""Textures that are drawings: the rug, the paintings, the book spines, the view outside, the clock, the globe.

They are made to be seen once, so their period is their size; `x` runs along u and `y` along w (upwards).
"""

from itertools import pairwise

import numpy as np

from nfc_splat.scenery.textures import Texture, canvas, edge, finish, mix, noise, rgb

SPINES = 24  # book spines side by side in `book_spines`
SPINE_WIDTH, SPINE_HEIGHT = 0.05, 0.30


def rug(rng: np.random.Generator, width: float, height: float) -> Texture:
    """A hand-woven rug: two borders, a field of diamonds and a medallion, symmetric both ways."""
    x, y = canvas(width, height)
    px, py = np.abs(x - width / 2), np.abs(y - height / 2)
    inset = np.minimum(width / 2 - px, height / 2 - py)
    field = _rug_field(px, py, width, height)
    along = np.where(width / 2 - px < height / 2 - py, py, px)
    blossom = np.hypot((along / 0.13) % 1 - 0.5, (inset - 0.16) / 0.13) * 0.13
    border = mix(rgb("1f2f4d"), rgb("c7a262"), edge(np.abs(blossom - 0.035) - 0.008))
    border = mix(border, rgb("a83a32"), edge(blossom - 0.018))
    image = mix(field, border, edge(inset - 0.25))
    for position, code, half in ((0.25, "d9c8a0", 0.012), (0.07, "d9c8a0", 0.012), (0.225, "7d2a2a", 0.012)):
        image = mix(image, rgb(code), edge(np.abs(inset - position) - half))
    image = mix(image, rgb("7d2a2a"), edge(inset - 0.055))
    image = mix(image, rgb("cdbb93"), edge(inset - 0.012))
    wear = 1 + 0.07 * noise(rng, x.shape, 60, octaves=2) + 0.05 * noise(rng, x.shape, 5, stretch=(1, 3))
    return finish(image * wear[..., None], width, height)


def _rug_field(px: np.ndarray, py: np.ndarray, width: float, height: float) -> np.ndarray:
    """The rug inside its borders, from the distances to its two axes."""
    cell = 0.22
    u, v = (px / cell + 0.5) % 1 - 0.5, (py / cell + 0.5) % 1 - 0.5
    diamond = (np.abs(u) + np.abs(v) - 0.36) * cell
    image = mix(rgb("8e2f2b"), rgb("c98d4b"), edge(np.abs(diamond) - 0.010))
    image = mix(image, rgb("27406b"), edge(diamond + 0.03))
    image = mix(image, rgb("e2d3ac"), edge(np.hypot(u, v) * cell - 0.018))
    reach = px / (0.30 * width) + py / (0.34 * height)
    for limit, code in (
        (1.0, "e0cfa5"),
        (0.94, "1f2f4d"),
        (0.72, "b98a45"),
        (0.68, "7d2a2a"),
        (0.40, "d9c8a0"),
        (0.34, "2d5560"),
    ):
        image = mix(image, rgb(code), edge((reach - limit) * 0.25))
    petals = 0.10 + 0.035 * np.cos(8 * np.arctan2(py, px))
    image = mix(image, rgb("d8b25a"), edge(np.hypot(px, py) - petals))
    return mix(image, rgb("7d2a2a"), edge(np.hypot(px, py) - 0.045))


def hills(rng: np.random.Generator, width: float, height: float) -> Texture:
    """A painting: hills behind hills under an evening sun."""
    x, y = canvas(width, height, 0.004)
    image = mix(rgb("f2c77c"), rgb("5f87a8"), y / height * 1.25 - 0.25)
    image = mix(image, rgb("fff0c0"), edge(np.hypot(x - 0.66 * width, y - 0.66 * height) - 0.11 * height))
    for layer, code in enumerate(("9fb0b5", "7c9599", "b8744f", "6f5a48", "3d4f3a", "22312b")):
        phase = rng.random(4) * 2 * np.pi
        ridge = sum(np.sin(2 * np.pi * (k + 1) * x / width + phase[k]) / (k + 1.5) for k in range(4))
        skyline = height * (0.62 - 0.1 * layer + 0.05 * ridge)
        shade = (1 + 0.1 * noise(rng, x.shape, 16, octaves=2))[..., None]
        image = mix(image, rgb(code) * shade, edge(y - skyline))
    return finish(image, width, height)


def circles(rng: np.random.Generator, width: float, height: float) -> Texture:
    """A painting: overlapping rings and discs on a pale ground."""
    x, y = canvas(width, height, 0.004)
    image = rgb("e6ddc8") * (1 + 0.05 * noise(rng, x.shape, 50, octaves=2))[..., None]
    codes = ("c8402f", "1f3f6e", "e0a82e", "2e7d6b", "202020", "d98a7a")
    for i in range(14):
        center = rng.uniform((0.12 * width, 0.12 * height), (0.88 * width, 0.88 * height))
        radius = rng.uniform(0.05, 0.24) * min(width, height)
        distance = np.hypot(x - center[0], y - center[1]) - radius
        cover = edge(distance) if i % 2 else edge(np.abs(distance) - 0.012)
        image = mix(image, rgb(codes[i % len(codes)]), 0.85 * cover)
    return finish(image, width, height)


def blocks(rng: np.random.Generator, width: float, height: float) -> Texture:
    """A painting: a plane divided by black bars, a few fields coloured."""
    x, y = canvas(width, height, 0.004)
    columns = np.sort(np.concatenate([[0, width], rng.uniform(0.15, 0.85, 3) * width]))
    rows = np.sort(np.concatenate([[0, height], rng.uniform(0.12, 0.88, 4) * height]))
    codes = ("e8e2d2", "c23428", "e8e2d2", "1f4f8f", "e8e2d2", "e3b32c", "e8e2d2")
    image = np.zeros((*x.shape, 3))
    for i in range(len(columns) - 1):
        for j in range(len(rows) - 1):
            inside = (x >= columns[i]) & (x < columns[i + 1]) & (y >= rows[j]) & (y < rows[j + 1])
            image[inside] = rgb(codes[rng.integers(len(codes))])
    for position, axis in [(c, x) for c in columns] + [(r, y) for r in rows]:
        image = mix(image, rgb("181818"), edge(np.abs(axis - position) - 0.009))
    return finish(image, width, height)


def book_spines(rng: np.random.Generator) -> Texture:
    """`SPINES` book spines side by side, `SPINE_WIDTH` each: cloth, two bands and a title."""
    width = SPINES * SPINE_WIDTH
    x, y = canvas(width, SPINE_HEIGHT, 0.0025)
    spine = np.floor(x / SPINE_WIDTH).astype(int) % SPINES
    codes = ("7d2b2b", "24405f", "2f5d4a", "c49a3f", "4b3a55", "d8cdb4", "a8552f", "33383d", "5f7f86", "8d8450")
    cloths = np.stack([rgb(codes[i]) for i in rng.integers(len(codes), size=SPINES)])
    golds = np.where(cloths.mean(1, keepdims=True) > 0.3, rgb("3a2a20"), rgb("e2c77f"))
    across = np.abs(x - (spine + 0.5) * SPINE_WIDTH)
    image = cloths[spine] * (1 + 0.10 * noise(rng, x.shape, 8))[..., None]
    image *= (1 - 0.35 * edge(0.019 - across, 0.006))[..., None]
    ink = golds[spine]
    for base in (0.035, 0.20):
        offset = base + 0.03 * rng.random(SPINES)[spine]
        image = mix(image, ink, 0.9 * edge(np.abs(y - offset) - 0.004))
    half = rng.uniform(0.025, 0.05, SPINES)[spine]
    letters = edge(np.abs((y / 0.02) % 1 - 0.5) * 0.02 - 0.006)
    title = edge(np.abs(y - 0.125) - half) * edge(across - 0.010) * letters
    return finish(mix(image, ink, 0.85 * title), width, SPINE_HEIGHT)


def outdoors(rng: np.random.Generator, width: float, height: float) -> Texture:
    """The view from the window: sky, clouds and a row of wooded hills."""
    x, y = canvas(width, height, 0.01)
    cloud = np.clip(0.5 * noise(rng, x.shape, 50, stretch=(1, 2.5), octaves=3) + 0.2, 0, 1)
    image = mix(mix(rgb("dfeaf0"), rgb("6fa3d8"), 1.3 * y / height - 0.4), rgb("ffffff"), 0.8 * cloud)
    for base, code in ((0.36, "8fa6b0"), (0.27, "6b8a6a"), (0.17, "46663f")):
        phase = rng.random(5) * 2 * np.pi
        ridge = sum(np.sin(2 * np.pi * (k + 1) * x / width + phase[k]) / (k + 2) for k in range(5))
        skyline = height * (base + 0.035 * ridge)
        image = mix(image, rgb(code) * (1 + 0.15 * noise(rng, x.shape, 9))[..., None], edge(y - skyline, 0.01))
    return finish(image, width, height)


def clock_face(size: float) -> Texture:
    """Twelve ticks, two hands at ten past ten."""
    x, y = canvas(size, size, 0.003)
    u, v = x - size / 2, y - size / 2
    radius, angle = np.hypot(u, v), np.arctan2(u, v)
    image = np.broadcast_to(rgb("efe9dc"), (*x.shape, 3)).copy()
    hour = (angle / (2 * np.pi) * 12 + 0.5) % 1 - 0.5
    tick = np.maximum(np.abs(hour) * 2 * np.pi / 12 * radius - 0.006, np.abs(radius - 0.40 * size) - 0.05 * size)
    image = mix(image, rgb("202428"), edge(tick, 0.003))
    for turn, length, half in ((10 / 12 + 10 / 720, 0.22 * size, 0.008), (10 / 60, 0.34 * size, 0.006)):
        direction = np.array([np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)])
        along, across = u * direction[0] + v * direction[1], u * direction[1] - v * direction[0]
        hand = np.maximum(np.abs(along - length / 2) - length / 2, np.abs(across) - half)
        image = mix(image, rgb("202428"), edge(hand, 0.003))
    return finish(image, size, size)


def globe(rng: np.random.Generator, circumference: float) -> Texture:
    """Continents on a sea, with meridians."""
    x, _ = canvas(circumference, circumference / 2, circumference / 256)
    land = noise(rng, x.shape, 60, octaves=3)
    image = mix(rgb("2c6a94"), rgb("3f86ad"), 0.5 + 0.3 * noise(rng, x.shape, 50))
    ground = mix(rgb("7d9a4e"), rgb("cdb77c"), 0.5 + 0.5 * noise(rng, x.shape, 40))
    image = mix(image, ground, np.clip((land - 0.25) * 6, 0, 1))
    meridian = np.abs((x / circumference * 12) % 1 - 0.5) * circumference / 12
    return finish(mix(image, rgb("e8e2cf"), 0.5 * edge(meridian - 0.003)), circumference, circumference / 2)


def urn_bands(rng: np.random.Generator, width: float, height: float) -> Texture:
    """Painted pottery: bands of zigzags, waves, petals and dots on a cream ground, once around and once along."""
    x, y = canvas(width, height, 0.01)
    ground = rgb("e6d8b8") * (1 + 0.05 * noise(rng, x.shape, 40, octaves=3))[..., None]
    image, u, v = ground, x / width, y / height
    inks = [rgb(code) for code in ("7a2a20", "1f3a5c", "b5722c", "245247")]
    bands = np.linspace(0.04, 0.99, 20)
    for i, (low, high) in enumerate(pairwise(bands)):
        tall = high - low
        t = (v - low) / tall
        inside = edge((np.abs(t - 0.5) - 0.5) * tall * height, 0.01)
        image = mix(image, _band(image, i, u, t, inks[i % 4], inks[(i + 1) % 4]), inside)
    for v0 in bands:
        image = mix(image, rgb("2c1d16"), edge(np.abs(v - v0) * height - 0.012, 0.01))
    crackle = 1 + 0.06 * noise(rng, x.shape, 6)
    return finish(image * crackle[..., None], width, height)


def _band(image: np.ndarray, kind: int, u: np.ndarray, t: np.ndarray, ink: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One band's motif over `image`: `u` runs once around in [0, 1), `t` across the band in [0, 1]."""
    if kind % 5 == 0:
        zigzag = np.abs(u * 36 % 1 - 0.5) * 2
        return mix(image, ink, edge((zigzag - t) * 0.2, 0.02))
    if kind % 5 == 1:
        wave = np.abs(t - 0.5 - 0.25 * np.sin(2 * np.pi * 24 * u)) - 0.13
        return mix(np.broadcast_to(ink, image.shape), rgb("e6d8b8"), edge(wave * 0.2, 0.02))
    if kind % 5 == 2:
        petal = np.hypot((u * 30 % 1 - 0.5) * 1.1, (t - 0.5) * 0.8)
        return mix(mix(image, ink, edge((petal - 0.33) * 0.2, 0.02)), other, edge((petal - 0.16) * 0.2, 0.02))
    if kind % 5 == 3:
        checks = np.sin(2 * np.pi * 27 * u) * np.sin(2 * np.pi * t)
        return mix(image, ink, edge(-checks * 0.1, 0.02))
    key = np.maximum(np.abs(u * 32 % 1 - 0.5) - 0.32, np.abs(t - 0.5) - 0.28)
    return mix(np.broadcast_to(ink, image.shape), other, edge(np.abs(key + 0.12) * 0.2 - 0.018, 0.02))
