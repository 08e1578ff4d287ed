"""What each kind of image file becomes, and what is refused."""

import numpy as np
import pytest
from data_scenes import write_png
from PIL import Image, ImageCms

from nfc_splat.data.images import read_depth, read_image, read_mask, read_size
from nfc_splat.errors import UserError

LIMIT = 10**6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_eight_bit_colour_is_taken_as_it_is(tmp_path, rng):
    pixels = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    for suffix in ("png", "bmp", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
        decoded = read_image(tmp_path / f"a.{suffix}", LIMIT)
        np.testing.assert_array_equal(decoded.pixels, pixels)
        assert not decoded.oddities
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp", LIMIT).pixels, pixels)


def test_grey_fills_three_channels(tmp_path, rng):
    grey = rng.integers(0, 256, (5, 6)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", LIMIT).pixels, np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).convert("1", dither=Image.Dither.NONE).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png", LIMIT).pixels[..., 0], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_and_rounded_not_cut(tmp_path, rng, channels):
    values = rng.integers(0, 65536, (7, 5, channels)).astype(np.uint16)
    values[0, 0], values[0, 1], values[0, 2] = 65535, 255, 128
    write_png(tmp_path / "deep.png", values)
    decoded = read_image(tmp_path / "deep.png", LIMIT)
    expected = np.floor(values / 257.0 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(decoded.pixels, np.repeat(expected, 3, 2) if channels == 1 else expected)
    assert not decoded.oddities


def test_sixteen_bit_colour_that_pillow_cuts_is_reported(tmp_path, rng):
    values = rng.integers(0, 65536, (7, 5, 2)).astype(np.uint16)
    write_png(tmp_path / "la.png", values)
    decoded = read_image(tmp_path / "la.png", LIMIT)
    assert decoded.oddities == {"low byte"}
    np.testing.assert_array_equal(decoded.pixels[..., 3], values[..., 1] >> 8)


def test_alpha_of_every_kind(tmp_path, rng):
    grey, alpha = rng.integers(0, 256, (2, 6, 4)).astype(np.uint8)
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    pixels = read_image(tmp_path / "la.png", LIMIT).pixels
    np.testing.assert_array_equal(pixels, np.stack([grey, grey, grey, alpha], 2))
    keyed = np.zeros((3, 3, 3), np.uint8)
    keyed[1, 1] = 9, 8, 7
    Image.fromarray(keyed).save(tmp_path / "key.png", transparency=(9, 8, 7))
    assert read_image(tmp_path / "key.png", LIMIT).pixels[..., 3].tolist() == [[255] * 3, [255, 0, 255], [255] * 3]


def test_opaque_alpha_is_dropped(tmp_path):
    Image.new("RGBA", (4, 3), (10, 20, 30, 255)).save(tmp_path / "opaque.png")
    assert read_image(tmp_path / "opaque.png", LIMIT).pixels.shape == (3, 4, 3)


def test_palettes_are_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", LIMIT).pixels.tolist() == [[[0, 0, 0], [200, 100, 50]]]
    image.save(tmp_path / "clear.png", transparency=0)
    assert read_image(tmp_path / "clear.png", LIMIT).pixels[..., 3].tolist() == [[0, 255]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert read_image(tmp_path / "cmyk.tif", LIMIT).pixels[0, 0].tolist() == [255, 0, 0]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "cmyk.jpg", LIMIT).pixels[0, 0].tolist()
    assert red > 240
    assert max(green, blue) < 15


def test_exif_orientation_is_ignored_and_reported(tmp_path):
    image = Image.new("RGB", (10, 6))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.png", exif=exif)
    decoded = read_image(tmp_path / "rotated.png", LIMIT)
    assert decoded.oddities == {"orientation"}
    assert decoded.pixels.shape == (6, 10, 3)
    assert decoded.pixels[0, 0].tolist() == [255, 0, 0]
    exif[0x0112] = 1
    image.save(tmp_path / "upright.png", exif=exif)
    assert not read_image(tmp_path / "upright.png", LIMIT).oddities


def test_colour_profiles_other_than_srgb_are_reported(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 4)).save(tmp_path / "srgb.png", icc_profile=profile)
    assert not read_image(tmp_path / "srgb.png", LIMIT).oddities
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.new("RGB", (4, 4)).save(tmp_path / "lab.png", icc_profile=lab)
    assert read_image(tmp_path / "lab.png", LIMIT).oddities == {"profile"}


def test_masks_keep_white(tmp_path):
    mask = np.array([[0, 255], [128, 64]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", LIMIT), mask)
    Image.fromarray(np.repeat(mask[..., None], 3, 2)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "rgb.png", LIMIT), mask)
    Image.fromarray(np.dstack([np.full((2, 2, 3), 255, np.uint8), mask])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "rgba.png", LIMIT), mask)


def test_depth_is_read_as_stored(tmp_path, rng):
    depth = rng.integers(0, 65536, (4, 5)).astype(np.uint16)
    write_png(tmp_path / "depth.png", depth)
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.png", LIMIT), depth.astype(np.float32))
    Image.new("RGB", (4, 5)).save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"rgb\.png: mode RGB, expected a 16-bit"):
        read_depth(tmp_path / "rgb.png", LIMIT)


def test_size_is_read_without_decoding(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:60])
    assert read_size(tmp_path / "cut.png", LIMIT) == (64, 48)


def huge_png(path):
    Image.new("L", (2, 2)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def broken_files(path):
    Image.effect_noise((64, 64), 60).convert("RGB").save(path / "good.png")
    Image.effect_noise((64, 64), 60).convert("RGB").save(path / "good.jpg")
    Image.effect_noise((64, 64), 60).convert("RGB").save(path / "good.tif", compression="tiff_lzw")
    Image.effect_noise((64, 64), 60).convert("RGB").save(path / "good.webp")
    for name in ("png", "jpg", "tif", "webp"):
        data = (path / f"good.{name}").read_bytes()
        (path / f"cut.{name}").write_bytes(data[: len(data) // 2])
        (path / f"head.{name}").write_bytes(data[:12])
        (path / f"scrambled.{name}").write_bytes(data[:40] + bytes(reversed(data[40:])))
        (path / f"zeros.{name}").write_bytes(data[:30] + bytes(len(data)))
    (path / "empty.png").write_bytes(b"")
    (path / "text.jpg").write_text("not an image at all\n" * 50)
    Image.effect_noise((64, 64), 60).save(path / "other.png", format="GIF")
    Image.new("F", (4, 4)).save(path / "float.tif")
    huge_png(path / "huge.png")
    (path / "folder.png").mkdir()


NAMES = [
    *(f"{kind}.{suffix}" for kind in ("cut", "head", "scrambled", "zeros") for suffix in ("png", "jpg", "tif", "webp")),
    *("empty.png", "text.jpg", "other.png", "float.tif", "huge.png", "folder.png", "absent.png"),
]
# A JPEG decoder fills in what is missing from entropy-coded data, and TIFF readers follow whatever offsets they find.
MAY_DECODE = ("scrambled.jpg", "zeros.jpg", "scrambled.tif", "zeros.tif", "zeros.webp", "scrambled.webp")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    broken_files(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_broken_files_are_named(broken, name):
    try:
        read_image(broken / name, LIMIT)
    except UserError as error:
        message = str(error)
    else:
        message = name if name in MAY_DECODE else "it was decoded"
    assert name in message
    assert "\n" not in message


def test_large_images_are_refused_before_decoding(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png: 40x30 is more than 1199 pixels.*--max-pixels"):
        read_size(tmp_path / "large.png", 1199)
    assert read_size(tmp_path / "large.png", 1200) == (40, 30)
