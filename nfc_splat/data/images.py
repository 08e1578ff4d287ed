"""Decoding photographs and masks with Pillow, which is imported on first use.

Every picture becomes uint8 [H, W, 3], or [H, W, 4] with straight alpha where some pixel is not opaque:
    1, L, 16-bit grey       repeated to three channels; 16 bits are scaled by 255/65535 and rounded
    LA, PA, RGBA, tRNS      with alpha (premultiplied TIFF is converted)
    P                       through its palette
    CMYK, YCbCr, LAB        to RGB by Pillow
    16-bit RGB and RGBA PNG scaled by 255/65535 and rounded (Pillow alone would drop the low byte)
EXIF orientation and colour profiles are not applied: structure from motion works on the stored pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nfc_splat.errors import UserError

# Formats photographs come in. The others Pillow knows are rarely images and sometimes bombs.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
ORIENTATION = 0x0112

Oddity = Literal["orientation", "profile", "low byte"]


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W, 3 | 4]; oddities: what about the file the user should hear of."""

    pixels: np.ndarray
    oddities: frozenset[Oddity]


def read_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height from the header, checked against `max_pixels`; nothing is decoded."""
    with _opened(path, max_pixels) as image:
        return image.size


def read_image(path: Path, max_pixels: int) -> Decoded:
    """Decode a photograph; raises a `UserError` naming the file when it is broken, too large or of an odd kind."""
    with _opened(path, max_pixels) as image:
        oddities: set[Oddity] = set()
        pixels = _rgb_or_rgba(image, path, oddities)
        if image.getexif().get(ORIENTATION, 1) not in (0, 1):
            oddities.add("orientation")
        profile = image.info.get("icc_profile")
        if profile and b"sRGB" not in profile.replace(b"\0", b""):
            oddities.add("profile")
    if pixels.shape[2] == 4 and (pixels[..., 3] == 255).all():
        pixels = np.ascontiguousarray(pixels[..., :3])
    return Decoded(pixels, frozenset(oddities))


def read_mask(path: Path, max_pixels: int) -> np.ndarray:
    """Decode a mask to uint8 [H, W], 255 = keep. Transparent counts as black."""
    pixels = read_image(path, max_pixels).pixels
    # Rec. 601 weights in integers; a white pixel gives exactly 255.
    weights = np.array([299, 587, 114], np.uint32)
    grey = ((pixels[..., :3] @ weights + 500) // 1000).astype(np.uint8)
    if pixels.shape[2] == 4:
        grey = ((grey.astype(np.uint32) * pixels[..., 3] + 127) // 255).astype(np.uint8)
    return grey


def read_depth(path: Path, max_pixels: int) -> np.ndarray:
    """Decode a one-channel 16-bit depth image to float32 [H, W], values as stored."""
    with _opened(path, max_pixels) as image:
        if not image.mode.startswith("I"):
            raise UserError(f"{path}: mode {image.mode}, expected a 16-bit grey depth image")
        return np.asarray(image).astype(np.float32)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator:
    """The image at `path`, of an allowed format and size; whatever a decoder throws becomes a `UserError`."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(
                    f"{path}: {width}x{height} is more than {max_pixels} pixels; reduce it or raise --max-pixels"
                )
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except Exception as error:  # decoders meet hostile bytes with every kind of exception there is
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be decoded as {', '.join(FORMATS)} ({reason})") from error


def _rgb_or_rgba(image, path: Path, oddities: set[Oddity]) -> np.ndarray:
    """uint8 [H, W, 3 | 4]."""
    mode = image.mode
    if mode.startswith("I"):
        return np.repeat(_to_8_bits(_grey_16(image, path))[..., None], 3, axis=2)
    if mode == "F":
        raise UserError(f"{path}: floating-point pixels; expected 8 or 16 bits per channel")
    if any(";16" in str(tile[3]) for tile in image.tile):
        if image.format == "PNG" and mode in ("RGB", "RGBA") and str(image.tile[0][3]) == f"{mode};16B":
            return _to_8_bits(_color_16(image, path))
        oddities.add("low byte")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return np.array(image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _grey_16(image, path: Path) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: grey values from {values.min()} to {values.max()}, expected 16 bits")
    return values


def _color_16(image, path: Path) -> np.ndarray:
    """16-bit channels of a PNG: Pillow yields one byte of each sample at a time, the first one read as big endian."""
    from PIL import Image

    high = np.asarray(image).astype(np.uint16)
    with Image.open(path, formats=("PNG",)) as again:
        again.tile = [tile._replace(args=tile.args.replace(";16B", ";16L")) for tile in again.tile]
        low = np.asarray(again)
    return high << 8 | low


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Round 0..65535 to 0..255; 65535 / 255 is 257 exactly."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
