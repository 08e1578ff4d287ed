"""Pictures for people: PNG files, depth and error in colour, and the contact sheet of truth, render and error.

Symbols: H rows, W columns. Colours are [H, W, 3] in [0, 1]; depth is [H, W] camera-space z in world units.

Depth is kept as levels, one byte per pixel: 0 where nothing is, else 1 to 255 for 1/far to 1/near, evenly. A PNG whose
palette colours them can be looked at, and coloured anew with the range of other pictures of the same view.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nfc_splat.files import atomic_path

# Dark blue through red to pale yellow, lightness rising evenly, so that it still reads in grey.
_RAMP = (
    (0.00, (0.02, 0.02, 0.09)),
    (0.17, (0.16, 0.07, 0.37)),
    (0.34, (0.40, 0.11, 0.48)),
    (0.51, (0.66, 0.20, 0.43)),
    (0.67, (0.89, 0.35, 0.30)),
    (0.83, (0.98, 0.60, 0.26)),
    (1.00, (0.99, 0.96, 0.74)),
)

ERROR_SCALE = 0.2
OPAQUE = 0.5  # alpha from which on a pixel shows something
_FAR_END = 0.13  # of the ramp: what is far away differs from nothing at all
DEPTH_MEANING = {
    "file": "PNG with a palette, every n-th pixel of the view so that no side exceeds 480",
    "depth": "expected z-depth, along the camera's viewing axis, in the units of the scene's files",
    "levels": "0: nothing there, alpha below 0.5; 1 to 255: 1 / depth from 1 / far (dark) to 1 / near (bright); "
    "what lies beyond is drawn as the end",
    "near, far": "2 % of what is seen in the view is nearer, 2 % is farther; null where nothing is seen",
}
_DEPTH_SIDE = 480


def to_bytes(image: Tensor) -> np.ndarray:
    """Colours or a mask to uint8 with clamping and rounding half up, the same shape; NaN becomes 0."""
    levels = torch.nan_to_num(image.detach().double(), nan=0.0).clamp(0.0, 1.0)
    return torch.floor(255.0 * levels + 0.5).to(torch.uint8).cpu().numpy()


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W], [H, W, 3] or [H, W, 4], or uint16 [H, W], as PNG, atomically."""
    save_image(path, Image.fromarray(np.ascontiguousarray(pixels)))


def save_image(path: Path, image: Image.Image) -> None:
    """Write a Pillow image as PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", compress_level=4)


def colorize(values: Tensor, low: float, high: float) -> np.ndarray:
    """Colour [H, W] values from `low` (dark) to `high` (bright): uint8 [H, W, 3]."""
    unit = torch.nan_to_num((values.detach().double() - low) / max(high - low, 1e-12)).clamp(0.0, 1.0).cpu().numpy()
    stops = np.array([stop for stop, _ in _RAMP])
    channels = [np.interp(unit, stops, [color[c] for _, color in _RAMP]) for c in range(3)]
    return np.floor(255.0 * np.stack(channels, axis=-1) + 0.5).astype(np.uint8)


def error_picture(pred: Tensor, target: Tensor) -> np.ndarray:
    """Mean absolute error over the channels, coloured from 0 to `ERROR_SCALE`: uint8 [H, W, 3]."""
    return colorize((pred.clamp(0.0, 1.0) - target).abs().mean(-1), 0.0, ERROR_SCALE)


def depth_levels(
    depth: Tensor, alpha: Tensor, *, most: int = _DEPTH_SIDE
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A small picture of depth.

    Args:
        depth, alpha: [H, W].
        most: rows and columns that the picture may have.

    Returns:
        levels, uint8 [H', W'], and (near, far), None where nothing is seen.
    """
    stride = math.ceil(max(depth.shape) / most)
    depth, alpha = (values.detach()[::stride, ::stride].double().cpu() for values in (depth, alpha))
    solid = (alpha >= OPAQUE) & (depth > 0) & depth.isfinite()
    if not solid.any():
        return np.zeros(depth.shape, np.uint8), None
    disparity = torch.where(solid, 1 / depth, 0.0)
    low, high = disparity[solid].quantile(torch.tensor([0.02, 0.98]).double()).tolist()
    unit = ((disparity - low) / max(high - low, 1e-12)).clamp(0.0, 1.0)
    levels = torch.where(solid, torch.floor(1.5 + 254 * unit), 0.0)
    return levels.to(torch.uint8).numpy(), (1 / high, 1 / low)


def depth_picture(levels: np.ndarray, seen: tuple[float, float], shown: tuple[float, float]) -> np.ndarray:
    """Levels in colour, near bright and far dark: uint8 [H, W, 3].

    Args:
        levels: uint8 [H, W] from `depth_levels`.
        seen: near and far, what the levels stand for.
        shown: near and far, what the ends of the colours shall stand for.
    """
    (near, far), (first, last) = seen, shown
    seen_at = torch.tensor(levels).double()
    disparity = 1 / far + (1 / near - 1 / far) * (seen_at - 1) / 254
    unit = ((disparity - 1 / last) / max(1 / first - 1 / last, 1e-12)).clamp(0.0, 1.0)
    return colorize(torch.where(seen_at > 0, _FAR_END + (1 - _FAR_END) * unit, 0.0), 0.0, 1.0)


def write_levels(path: Path, levels: np.ndarray) -> None:
    """Write levels as a PNG whose palette colours them, atomically."""
    image = Image.fromarray(levels).convert("P")
    image.putpalette(depth_picture(np.arange(256, dtype=np.uint8)[None], (1.0, 2.0), (1.0, 2.0)).tobytes())
    save_image(path, image)


@dataclass(frozen=True)
class SheetRow:
    """One view of the contact sheet.

    Attributes:
        label: what the row shows, such as "worst".
        name: of the view.
        metrics: one short line.
        pictures: truth, render and error, each uint8 [H, W, 3].
    """

    label: str
    name: str
    metrics: str
    pictures: tuple[np.ndarray, ...]


_BACKGROUND, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (110, 110, 116)
_MARGIN, _GAP = 24, 10
_NARROWEST = 190  # column that the captions fit
_COLUMNS = ("truth", "render", f"error, 0 to {ERROR_SCALE:g}")


def contact_sheet(title: str, subtitle: str, rows: Sequence[SheetRow]) -> Image.Image:
    """Draw truth, render and error of a few views, side by side, with a caption above each row.

    Views are reduced until they fit 480x480 pixels, and small ones are enlarged by a whole factor to about 240.
    """
    scale = _scale([row.pictures[0].shape for row in rows])
    cells = [[_resize(picture, scale) for picture in row.pictures] for row in rows]
    width = max(_NARROWEST, *(picture.width for row in cells for picture in row))
    total = 2 * _MARGIN + 3 * width + 2 * _GAP
    top, caption = 96, 34
    height = top + sum(caption + row[0].height + _GAP for row in cells) + _MARGIN - _GAP
    sheet = Image.new("RGB", (total, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, (_MARGIN, 20), title, 22, _INK, total - 2 * _MARGIN)
    draw_text(draw, (_MARGIN, 50), subtitle, 14, _FAINT, total - 2 * _MARGIN)
    for column, name in enumerate(_COLUMNS):
        draw_text(draw, (_MARGIN + column * (width + _GAP), 76), name, 14, _FAINT, width)
    y = top
    for row, pictures in zip(rows, cells, strict=True):
        _caption(draw, row, y + 8, total - 2 * _MARGIN)
        y += caption
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (_MARGIN + column * (width + _GAP), y))
        y += pictures[0].height + _GAP
    return sheet


def _scale(shapes: Sequence[tuple[int, ...]]) -> float:
    """How much to enlarge (a whole number) or to reduce pictures of these (height, width, channels)."""
    height, width = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    longest = max(height, width)
    if longest > 480:
        return 480 / longest
    return min(math.ceil(240 / width), max(1, 480 // longest))


def _resize(pixels: np.ndarray, scale: float) -> Image.Image:
    """Enlarged pixels stay visible as pixels, reductions average."""
    image = Image.fromarray(pixels)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def _caption(draw: ImageDraw.ImageDraw, row: SheetRow, y: int, width: int) -> None:
    """Label and name on the left, metrics on the right."""
    metrics_width = _font(16).getlength(row.metrics)
    draw_text(draw, (_MARGIN + width - metrics_width, y), row.metrics, 16, _INK, width)
    label_width = _font(16).getlength(row.label) + 10
    draw_text(draw, (_MARGIN, y), row.label, 16, _INK, width)
    draw_text(draw, (_MARGIN + label_width, y), row.name, 16, _FAINT, width - metrics_width - label_width - 16)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: tuple, width: float
) -> None:
    """Draw one line, shortened in the middle until it fits `width` pixels."""
    font = _font(size)
    kept, shown = len(text), text
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        shown = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
    draw.text(at, shown, fill=ink, font=font)
