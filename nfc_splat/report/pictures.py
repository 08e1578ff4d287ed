"""Pictures of a run folder as data URIs, no larger than a page needs. What cannot be shown says why.

Renderings differ from photographs by little, and compression must not add to it: small pictures are lossless WebP where
they are few, others JPEG with colours at full resolution.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.eval.pictures import ERROR_SCALE, colorize, depth_picture, error_picture
from nfc_splat.files import read_json
from nfc_splat.report.folder import MAX_BYTES, Run, View, at, number, picture_path, read_png

QUALITY = 90
SMALL = 100_000  # pixels
RAMP_STOPS = 9


@dataclass(frozen=True)
class Picture:
    """A picture of the page, or the reason why there is none.

    Attributes:
        uri: data URI, empty where there is a reason.
        size: width and height in pixels.
        alt: what it shows.
        reason: why it is missing, one sentence.
        caption: what its colours mean, where that is not the same for all.
    """

    uri: str
    size: tuple[int, int]
    alt: str
    reason: str = ""
    caption: str = ""


def missing(alt: str, reason: str) -> Picture:
    """No picture, and why."""
    return Picture("", (0, 0), alt, reason)


@dataclass(frozen=True)
class Detail:
    """How well pictures are kept: the longest side in pixels, and whether small ones are kept exactly."""

    side: int
    exact: bool = False


def encoded(pixels: np.ndarray, detail: Detail, alt: str, caption: str = "") -> Picture:
    """uint8 [H, W, 3] as a data URI, reduced where it is too large."""
    image = Image.fromarray(pixels)
    factor = detail.side / max(image.size)
    if factor < 1:
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(size, Image.Resampling.BOX)
    sink = io.BytesIO()
    if detail.exact and image.width * image.height <= SMALL:
        image.save(sink, format="WEBP", lossless=True, method=4)
    else:
        image.save(sink, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    kind = "webp" if sink.getvalue()[:4] == b"RIFF" else "jpeg"
    return Picture(
        f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}", image.size, alt, "", caption
    )


@dataclass(frozen=True)
class Depth:
    """What `evaluate_views` kept of a view's depth: levels [H, W], and near and far."""

    levels: np.ndarray
    near_far: tuple[float, float]


class RunPictures:
    """The pictures of one run's views.

    Args:
        run: whose.
        detail: how well they are kept.
    """

    def __init__(self, run: Run, detail: Detail) -> None:
        self._run, self._detail = run, detail
        self._ranges: Mapping[str, object] | str = _depth_ranges(run.folder)

    def truth(self, view: View) -> Picture:
        """The photograph."""
        return self._shown(view, "gt", f"Photograph of view {view.name}")

    def render(self, view: View) -> Picture:
        """What the run drew."""
        return self._shown(view, "renders", f"Rendering of view {view.name} by {self._run.name}")

    def error(self, view: View) -> Picture:
        """Where both differ."""
        alt = f"Absolute error of view {view.name} by {self._run.name}"
        try:
            render, truth = (self._read(view, kind) for kind in ("renders", "gt"))
        except UserError as error:
            return missing(alt, f"{error}.")
        if render.shape != truth.shape:
            return missing(alt, "The rendering and the photograph differ in size.")
        unit = [torch.from_numpy(pixels.astype(np.float32) / 255) for pixels in (render, truth)]
        return encoded(error_picture(*unit), self._detail, alt)

    def depth_of(self, view: View) -> Depth | str:
        """The depth of a view, or why there is none."""
        if isinstance(self._ranges, str):
            return self._ranges
        if view.file not in self._ranges:
            return "depth/depth.json does not name this view."
        near_far = self._ranges[view.file]
        if near_far is None:
            return "Nothing opaque is seen in this view."
        ends = [number(value) for value in near_far] if isinstance(near_far, list) else []
        if len(ends) != 2 or None in ends or not 0 < ends[0] <= ends[1]:
            return "depth/depth.json holds no near and far of this view."
        try:
            return Depth(read_png(picture_path(self._run.folder, "depth", view.file), "P"), (ends[0], ends[1]))
        except UserError as error:
            return f"{error}."

    def depth(self, view: View, found: Depth | str, shown: tuple[float, float] | None) -> Picture:
        """`found` in colours from the near to the far end of `shown`."""
        alt = f"Depth of view {view.name} by {self._run.name}"
        if isinstance(found, str) or shown is None:
            return missing(alt, str(found))
        caption = f"{found.near_far[0]:.3g} to {found.near_far[1]:.3g}"
        return encoded(depth_picture(found.levels, found.near_far, shown), self._detail, alt, caption)

    def _read(self, view: View, kind: str) -> np.ndarray:
        return read_png(picture_path(self._run.folder, kind, view.file), "RGB")

    def _shown(self, view: View, kind: str, alt: str) -> Picture:
        try:
            return encoded(self._read(view, kind), self._detail, alt)
        except UserError as error:
            return missing(alt, f"{error}.")


def _depth_ranges(folder: Path) -> Mapping[str, object] | str:
    """Near and far by file, or why they are not known."""
    path = folder / "depth" / "depth.json"
    if not path.exists():
        return "This run was measured without keeping depth; eval images draws it anew, with depth."
    try:
        ranges = at(read_json(path, max_bytes=MAX_BYTES), "near_far")
    except UserError as error:
        return f"{error}."
    return ranges if isinstance(ranges, Mapping) else f"{path}: holds no near_far."


def error_bar() -> tuple[str, float]:
    """Colours of the error pictures from 0 to the value that is given with them."""
    return _gradient(0.0), ERROR_SCALE


def depth_bar() -> str:
    """Colours of the depth pictures, from far to near."""
    levels = np.linspace(1, 255, RAMP_STOPS).round().astype(np.uint8)
    return _stops(depth_picture(levels[None], (1.0, 2.0), (1.0, 2.0))[0])


def _gradient(low: float) -> str:
    return _stops(colorize(torch.linspace(low, 1.0, RAMP_STOPS)[None], 0.0, 1.0)[0])


def _stops(colors: np.ndarray) -> str:
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in colors.tolist())
