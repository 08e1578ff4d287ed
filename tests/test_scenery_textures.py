"""Procedural textures: seamless, band-limited, reproducible reflectances."""

import numpy as np
import pytest

from nfc_splat.scenery import pictures, textures

MAKERS = {
    "plaster": lambda rng: textures.plaster(rng, "cf8f5a"),
    "bricks": textures.bricks,
    "planks": lambda rng: textures.planks(rng, "c79a66", "7a4e2c"),
    "wood": lambda rng: textures.wood(rng, "c08a54", "8a5a30"),
    "fans": lambda rng: textures.fans("1f5157", "7f8560"),
    "marble": textures.marble,
    "tweed": lambda rng: textures.tweed(rng, "c4763c", "8e4a26"),
    "stripes": lambda rng: textures.stripes(["d9c7a0", "b0533a"], [0.09, 0.02]),
    "chevrons": lambda rng: textures.chevrons(["e7dcc2", "2a5d6b", "e0a83a"]),
    "dots": lambda rng: textures.dots("24405f", "e8dfc8"),
    "leaf": textures.leaf,
    "rug": lambda rng: pictures.rug(rng, 2.7, 1.9),
    "hills": lambda rng: pictures.hills(rng, 0.9, 0.6),
    "circles": lambda rng: pictures.circles(rng, 0.5, 0.6),
    "blocks": lambda rng: pictures.blocks(rng, 0.5, 0.6),
    "spines": pictures.book_spines,
    "outdoors": lambda rng: pictures.outdoors(rng, 1.9, 1.35),
    "clock": lambda rng: pictures.clock_face(0.44),
    "globe": lambda rng: pictures.globe(rng, 0.88),
    "urn": lambda rng: pictures.urn_bands(rng, 5.0, 4.7),
}
SEAMLESS = ["plaster", "bricks", "planks", "fans", "marble", "tweed", "stripes", "chevrons", "dots", "urn"]


@pytest.mark.parametrize("name", MAKERS)
def test_textures_are_reflectances_and_follow_the_seed(name):
    first, again = (MAKERS[name](np.random.default_rng(3)) for _ in range(2))
    assert first.image.dtype == np.float32
    assert first.image.ndim == 3
    assert 0 < first.image.min() <= first.image.max() < 1
    assert first.image.std() > 0.005
    assert np.array_equal(first.image, again.image)


@pytest.mark.parametrize("name", SEAMLESS)
def test_repeating_textures_have_no_seam(name):
    """The step across the border is no larger than the steps inside."""
    image = MAKERS[name](np.random.default_rng(3)).image
    for axis in (1,) if name == "urn" else (0, 1):
        steps = np.abs(np.diff(image, axis=axis)).mean(axis=(1 - axis, 2))
        border = np.abs(np.take(image, 0, axis) - np.take(image, -1, axis)).mean()
        assert border <= 1.05 * steps.max() + 1e-6


def test_noise_is_standardised_and_holds_nothing_finer_than_asked():
    field = textures.noise(np.random.default_rng(0), (256, 256), 16.0)
    assert field.mean() == pytest.approx(0, abs=1e-9)
    assert field.std() == pytest.approx(1)
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    assert power[frequency > 3 / 16].sum() < 1e-3 * power.sum()


def test_noise_with_octaves_is_finer():
    energy = []
    for octaves in (1, 3):
        field = textures.noise(np.random.default_rng(0), (256, 256), 32.0, octaves=octaves)
        energy.append(np.abs(np.diff(field, axis=1)).mean())
    assert energy[1] > 1.3 * energy[0]


def test_edges_fall_from_one_to_zero_over_twice_the_softness():
    distance = np.linspace(-0.02, 0.02, 81)
    cover = textures.edge(distance, 0.01)
    assert (np.diff(cover) <= 0).all()
    assert (cover[distance <= -0.01 - 1e-9] == 1).all()
    assert (cover[distance >= 0.01 + 1e-9] == 0).all()
    assert cover[40] == pytest.approx(0.5)


def test_colour_codes_are_made_linear():
    assert textures.rgb("ffffff") == pytest.approx([1, 1, 1])
    assert textures.rgb("000000") == pytest.approx([0, 0, 0])
    assert textures.rgb("bcbcbc") == pytest.approx([0.5029] * 3, abs=1e-4)


def test_an_upright_texture_is_the_same_turned():
    texture = textures.wood(np.random.default_rng(0), "c08a54", "8a5a30")
    turned = textures.upright(texture)
    assert turned.period == texture.period[::-1]
    assert np.array_equal(turned.image.swapaxes(0, 1), texture.image)
