"""Procedural textures: surfaces' colours as images of linear reflectance, in metres.

Symbols: H rows (texture coordinate w, upwards) and W columns (u). Every texture repeats seamlessly, every edge in it is
softened over a texel or more, and randomness comes from one generator: one seed, one picture.
"""

from dataclasses import dataclass

import numpy as np

TEXEL = 0.005  # metres


@dataclass(frozen=True)
class Texture:
    """An image that repeats every `period` metres.

    Attributes:
        image: [H, W, 3] float32 linear reflectance in [0, 1].
        period: (width, height) in metres.
    """

    image: np.ndarray
    period: tuple[float, float]


def rgb(code: str) -> np.ndarray:
    """[3] linear colour of an sRGB hex code such as "c0a080"."""
    stored = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


def flat(code: str) -> Texture:
    """One colour."""
    return Texture(np.broadcast_to(rgb(code), (4, 4, 3)).astype(np.float32), (1.0, 1.0))


def noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    wavelength: float,  # texels
    *,
    stretch: tuple[float, float] = (1.0, 1.0),
    octaves: int = 1,
) -> np.ndarray:
    """Seamless Gaussian noise [H, W] of zero mean and unit variance with features of about `wavelength` texels.

    White noise filtered in the Fourier domain, so that nothing is finer than asked. `stretch` lengthens the features
    along (rows, columns); each further octave adds half the wavelength at half the strength.
    """
    fy = np.fft.fftfreq(shape[0])[:, None] * stretch[0]
    fx = np.fft.rfftfreq(shape[1])[None, :] * stretch[1]
    frequency = np.sqrt(fx * fx + fy * fy)
    total = np.zeros(shape)
    for octave in range(octaves):
        center = 2**octave / wavelength
        band = np.exp(-0.5 * ((frequency - center) / (0.5 * center)) ** 2)
        band[0, 0] = 0.0
        layer = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * band, s=shape)
        total += layer / max(layer.std(), 1e-12) / 2**octave
    return total / total.std()


def mix(a: np.ndarray, b: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """[..., 3] blend of colours `a` and `b`, `amount` [...] of `b`."""
    amount = np.clip(amount, 0, 1)[..., None]
    return a * (1 - amount) + b * amount


def edge(distance: np.ndarray, softness: float = TEXEL) -> np.ndarray:
    """1 inside (negative distance), 0 outside, smooth over `softness` metres to either side."""
    t = np.clip(0.5 - distance / (2 * softness), 0, 1)
    return t * t * (3 - 2 * t)


def canvas(width: float, height: float, texel: float = TEXEL) -> tuple[np.ndarray, np.ndarray]:
    """Texel centres (x [H, W], y [H, W]) in metres of an image of `width` by `height` metres."""
    columns, rows = max(4, round(width / texel)), max(4, round(height / texel))
    x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
    return np.meshgrid(x, y)


def finish(image: np.ndarray, width: float, height: float) -> Texture:
    """A `Texture` of an image, limited to reflectances that exist."""
    return Texture(np.clip(image, 0.004, 0.92).astype(np.float32), (width, height))


def plaster(rng: np.random.Generator, code: str, roughness: float = 0.05) -> Texture:
    """Painted plaster: cloudy, with fine bumps."""
    x, _ = canvas(2.0, 2.0)
    cloud = 0.7 * noise(rng, x.shape, 90, octaves=3) + 0.5 * noise(rng, x.shape, 7)
    return finish(rgb(code) * (1 + roughness * cloud[..., None]), 2.0, 2.0)


def bricks(rng: np.random.Generator) -> Texture:
    """Running-bond brickwork of 24 x 8 cm, whitewashed in places."""
    columns, courses, length, height = 10, 24, 0.24, 0.08
    x, y = canvas(columns * length, courses * height)
    course = np.floor(y / height).astype(int) % courses
    along = x / length + 0.5 * (course % 2)
    column = np.floor(along).astype(int) % columns
    tone = rng.standard_normal((courses, columns))[course, column]
    hue = rng.random((courses, columns))[course, column]
    face = mix(rgb("9c4a33"), rgb("b9714f"), hue) * (1 + 0.16 * tone)[..., None]
    face *= (1 + 0.1 * noise(rng, x.shape, 9, octaves=2))[..., None]
    inset = np.maximum(
        np.abs(along % 1 - 0.5) * length - (length - 0.014) / 2,
        np.abs(y / height % 1 - 0.5) * height - (height - 0.014) / 2,
    )
    image = mix(rgb("b8ab9c") * (1 + 0.08 * noise(rng, x.shape, 6))[..., None], face, edge(inset))
    wash = 0.5 * np.clip(0.55 * noise(rng, x.shape, 120, octaves=3) - 0.35, 0, 1)
    return finish(mix(image, rgb("d9cfc2"), wash), columns * length, courses * height)


def planks(
    rng: np.random.Generator,
    light: str,
    dark: str,
    *,
    rows: int = 16,
    width: float = 0.12,
    length: float = 2.4,
    contrast: float = 1.0,
) -> Texture:
    """Floor boards along u, each with its own tone and grain, two per row at random offsets."""
    x, y = canvas(length, rows * width)
    row = np.floor(y / width).astype(int) % rows
    along = (x / length + rng.random(rows)[row]) * 2
    board = np.floor(along).astype(int) % 2
    tone = rng.random((rows, 2))[row, board]
    grain = 0.6 * noise(rng, x.shape, 9, stretch=(1, 14)) + 0.5 * noise(rng, x.shape, 40, stretch=(1, 6))
    image = mix(rgb(light), rgb(dark), 0.5 + contrast * (0.7 * (tone - 0.5) + 0.14 * grain))
    joint = np.minimum(np.abs((y / width + 0.5) % 1 - 0.5) * width, np.abs((along + 0.5) % 1 - 0.5) * length / 2)
    return finish(mix(image, 0.35 * rgb(dark), 0.75 * edge(joint - 0.003)), length, rows * width)


def wood(rng: np.random.Generator, light: str, dark: str) -> Texture:
    """Sawn wood with its grain along u."""
    x, y = canvas(1.2, 0.6)
    rings = np.sin(2 * np.pi * (5 * y / 0.6 + 0.45 * noise(rng, x.shape, 70, stretch=(1, 6))))
    fibre = noise(rng, x.shape, 6, stretch=(1, 16))
    return finish(mix(rgb(light), rgb(dark), 0.45 + 0.2 * rings + 0.12 * fibre), 1.2, 0.6)


def upright(texture: Texture) -> Texture:
    """The same with its grain along w."""
    return Texture(np.ascontiguousarray(texture.image.swapaxes(0, 1)), texture.period[::-1])


def fans(ground: str, line: str, size: float = 0.64) -> Texture:
    """Wallpaper of overlapping fans, each a set of concentric arcs."""
    x, y = canvas(size, size)
    image = np.broadcast_to(rgb(ground), (*x.shape, 3)).copy()
    # Rows lie a quarter of the size apart, every other one shifted; a lower row covers the one above it.
    for row in range(6, -3, -1):
        dx = ((x / size + 0.5 * (row % 2)) % 1 - 0.5) * size
        radius = np.hypot(dx, y - row * size / 4) / (size / 2)
        arcs = edge((np.abs(radius * 4 % 1 - 0.75) - 0.13) * size / 8, 0.008) * edge(0.2 - radius, 0.05)
        shade = mix(rgb(ground) * (0.85 + 0.3 * (row % 2)), rgb(line), arcs)
        image = mix(image, shade, edge((radius - 1) * size / 2))
    return finish(image, size, size)


def marble(rng: np.random.Generator, ground: str = "e4ded6", vein: str = "6d6a70") -> Texture:
    """Marble: ridges of warped noise as veins."""
    x, _ = canvas(0.8, 0.8)
    ridge = np.abs(noise(rng, x.shape, 70, octaves=3))
    image = mix(rgb(ground), rgb(vein), 0.75 * np.exp(-((ridge / 0.12) ** 2)))
    return finish(mix(image, rgb(ground) * 0.8, 0.25 + 0.2 * noise(rng, x.shape, 60)), 0.8, 0.8)


def tweed(rng: np.random.Generator, light: str, dark: str) -> Texture:
    """Woven upholstery: a herringbone of 4 cm with uneven yarn."""
    period = 0.4
    x, y = canvas(period, period)
    zigzag = np.abs((x / 0.08) % 1 - 0.5) * 2
    weave = 0.5 + 0.5 * np.sin(2 * np.pi * (y / 0.04 + zigzag))
    return finish(mix(rgb(light), rgb(dark), 0.25 + 0.4 * weave + 0.12 * noise(rng, x.shape, 8)), period, period)


def stripes(codes: list[str], widths: list[float]) -> Texture:
    """Vertical bands of given widths in metres."""
    total = sum(widths)
    x, _ = canvas(total, 0.1)
    image = np.broadcast_to(rgb(codes[0]), (*x.shape, 3)).copy()
    start = 0.0
    for code, width in zip(codes, widths, strict=True):
        image = mix(image, rgb(code), edge(np.abs((x - start - width / 2 + total / 2) % total - total / 2) - width / 2))
        start += width
    return finish(image, total, 0.1)


def chevrons(codes: list[str], size: float = 0.2) -> Texture:
    """Zigzag bands, one per colour."""
    x, y = canvas(size, size)
    along = (y / size + np.abs(x / size * 2 % 1 - 0.5) * 0.5) % 1 * len(codes)
    image = np.zeros((*x.shape, 3))
    for i, code in enumerate(codes):
        distance = np.abs((along - i - 0.5 + len(codes) / 2) % len(codes) - len(codes) / 2) - 0.5
        image = (
            image * (1 - edge(distance * size / len(codes)))[..., None]
            + rgb(code) * edge(distance * size / len(codes))[..., None]
        )
    return finish(image, size, size)


def dots(ground: str, ink: str, pitch: float = 0.1, radius: float = 0.028) -> Texture:
    """Polka dots, every other row shifted."""
    x, y = canvas(pitch, pitch)
    nearest = np.minimum(
        np.hypot(x - pitch / 2, y - pitch / 2),
        np.hypot(np.minimum(x, pitch - x), np.minimum(y, pitch - y)),
    )
    return finish(mix(rgb(ground), rgb(ink), edge(nearest - radius * 0.8)), pitch, pitch)


def leaf(rng: np.random.Generator) -> Texture:
    """A long leaf across u (6 cm) and up w, banded like mother-in-law's tongue, with pale edges."""
    x, _ = canvas(0.06, 0.8)
    bands = noise(rng, x.shape, 14, stretch=(0.6, 4))
    image = mix(rgb("2f5d34"), rgb("7fa05a"), 0.5 + 0.4 * bands)
    rim = edge(0.022 - np.abs(x - 0.03), 0.004)
    return finish(mix(image, rgb("c9bf6a"), 0.8 * rim), 0.06, 0.8)
