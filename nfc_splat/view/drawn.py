"""Pictures that a model draws for a visitor: coarse first, then finer, in pieces that each take a moment.

`drawing(...)` is a generator: every `next` does one piece of work and gives a picture where one got finished, else
None. Whoever asks decides when there is time for the next piece, and forgets the generator once the visitor has moved.

Symbols: H rows, W columns.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.cameras import Cameras
from nfc_splat.eval.images import psnr
from nfc_splat.eval.pictures import OPAQUE, depth_levels, depth_picture, error_picture, to_bytes
from nfc_splat.rendering import Rendering, SceneModel

MODES = ("color", "depth", "normal", "error")
PIECE_SECONDS = 0.1  # what one piece of work should take
COARSEST = 32  # longest side of the first picture, at least
_AROUND = 38  # grey around a photograph


class Drawn(NamedTuple):
    """A finished picture.

    Attributes:
        pixels: uint8 [H, W, 3].
        said: what there is to say about it, such as the PSNR.
        final: whether no finer one follows.
    """

    pixels: np.ndarray
    said: str
    final: bool


@dataclass
class Pace:
    """How many pixels a second a model draws, as measured.

    Attributes:
        rate: pixels per second.
    """

    rate: float = 20_000.0

    def measured(self, pixels: int, seconds: float) -> None:
        """Learn from one piece of work."""
        if pixels < self.pixels // 2:
            return  # the rest of a picture says more about what every piece costs than about pixels
        # The first piece may have compiled kernels; a later one sets that right at once.
        self.rate = max(pixels / max(seconds, 1e-6), 100.0)

    @property
    def pixels(self) -> int:
        """How many fit into one piece of work."""
        return max(COARSEST, int(self.rate * PIECE_SECONDS))


@dataclass(frozen=True, eq=False)
class Photograph:
    """What a picture is compared with.

    Attributes:
        camera: one, of the photograph's size.
        target: [H, W, 3] in [0, 1].
        mask: [H, W] weights, or None.
    """

    camera: Cameras
    target: Tensor
    mask: Tensor | None

    def at(self, width: int, height: int) -> "Photograph":
        """The photograph reduced to that size."""
        shrink = lambda image: F.interpolate(image[None], (height, width), mode="area")[0]  # noqa: E731
        sizes = torch.tensor([[width, height]])
        mask = None if self.mask is None else shrink(self.mask[None])[0]
        return replace(
            self, camera=self.camera.resized(sizes), target=shrink(self.target.movedim(-1, 0)).movedim(0, -1), mask=mask
        )


@dataclass(frozen=True, eq=False)
class Wish:
    """What a visitor wants to see.

    Attributes:
        mode: one of `MODES`.
        camera: one, of the window's size.
        background: [3].
        photograph: of "error": taken from `camera`'s place, shown where it lies in the window.
    """

    mode: str
    camera: Cameras
    background: Tensor
    photograph: Photograph | None = None


def drawing(model: SceneModel, wish: Wish, pace: Pace) -> Iterator[Drawn | None]:
    """Pictures of `wish`, each twice as wide as the one before, until its size is reached.

    Raises:
        ValueError: the mode "error" without a photograph.
    """
    whole = wish.camera
    if wish.mode == "error":
        if wish.photograph is None:
            raise ValueError("an error is one to a photograph, and there is none")
        whole = wish.photograph.camera
    for width, height in sizes(*whole.sizes[0].tolist(), pace.pixels):
        photograph = None if wish.photograph is None else wish.photograph.at(width, height)
        camera = whole.resized(torch.tensor([[width, height]]))
        pieces = _pieces(model, camera, wish, pace)
        drawn = yield from pieces
        final = (width, height) == tuple(whole.sizes[0].tolist())
        yield _finished(drawn, camera, wish, photograph, final)


def sizes(width: int, height: int, first: int) -> list[tuple[int, int]]:
    """Widths and heights of the pictures, ascending: about `first` pixels, then four times as many each, up to all."""
    longest = max(width, height)
    side = max(COARSEST, math.sqrt(first * longest / min(width, height)))
    result = []
    while side < 0.75 * longest:
        result.append((max(1, round(width * side / longest)), max(1, round(height * side / longest))))
        side *= 2
    return [*result, (width, height)]


def _pieces(model: SceneModel, camera: Cameras, wish: Wish, pace: Pace) -> Iterator[None]:
    """Draw one picture; rays in pieces, rasterised ones at once. Gives None after each piece but the last, and returns
    the `Rendering` [H, W, ...]."""
    width, height = camera.sizes[0].tolist()
    device = next(model.parameters()).device
    camera = camera.to(device)
    if model.request == "image":
        return _row(_render(model, camera, None, wish, pace), (height, width))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(device)
    parts, begin = [], 0
    while begin < len(pixels):
        if parts:
            yield None
        end = begin + pace.pixels
        parts.append(_render(model, camera, pixels[begin:end], wish, pace))
        begin = end
    return _row(_joined(parts), (height, width))


def _render(model: SceneModel, camera: Cameras, pixels: Tensor | None, wish: Wish, pace: Pace) -> Rendering:
    """One piece, in eval mode, without gradients; the model is left as it was."""
    started, was_training = time.perf_counter(), model.training
    normals = wish.mode == "normal" and hasattr(model, "draw_normals")
    drew_normals = normals and model.draw_normals
    model.eval()
    try:
        if normals:
            model.draw_normals = True
        with torch.no_grad():
            drawn = model.render(camera, pixels, background=wish.background.to(camera.viewmats.device))
            kept = (drawn.color, drawn.alpha, drawn.depth, drawn.normal)
            drawn = Rendering(*(None if tensor is None else tensor.cpu() for tensor in kept))
    finally:
        model.train(was_training)
        if normals:
            model.draw_normals = drew_normals
    pace.measured(drawn.color.shape[:-1].numel(), time.perf_counter() - started)
    return drawn


def _joined(parts: list[Rendering]) -> Rendering:
    tensors = ([getattr(part, name) for part in parts] for name in ("color", "alpha", "depth", "normal"))
    return Rendering(*(None if rows[0] is None else torch.cat(rows) for rows in tensors))


def _row(drawn: Rendering, shape: tuple[int, int]) -> Rendering:
    """The tensors as [H, W, ...]."""
    view = lambda tensor: None if tensor is None else tensor.reshape(*shape, tensor.shape[-1])  # noqa: E731
    return Rendering(view(drawn.color), view(drawn.alpha), view(drawn.depth), view(drawn.normal))


def _finished(drawn: Rendering, camera: Cameras, wish: Wish, photograph: Photograph | None, final: bool) -> Drawn:
    """The picture of a rendering [H, W, ...]."""
    if wish.mode == "depth":
        return Drawn(_depth(drawn), "", final)
    if wish.mode == "normal":
        normal = drawn.normal if drawn.normal is not None else normals_from_depth(drawn, camera)
        return Drawn(to_bytes(0.5 + 0.5 * normal * (drawn.alpha >= OPAQUE)), "", final)
    if wish.mode == "error":
        color = drawn.color.clamp(0, 1)
        value = float(psnr(color, photograph.target, photograph.mask))
        height, width = color.shape[:2]
        said = f"PSNR {value:.2f} dB at {width}x{height}"
        pixels = error_picture(color, photograph.target)
        if photograph.mask is not None:
            pixels[(photograph.mask < 0.5).numpy()] = _AROUND
        return Drawn(in_window(pixels, wish.photograph.camera, wish.camera), said, final)
    return Drawn(to_bytes(drawn.color), "", final)


def _depth(drawn: Rendering) -> np.ndarray:
    """Near bright, far dark, uint8 [H, W, 3]."""
    levels, seen = depth_levels(drawn.depth[..., 0], drawn.alpha[..., 0], most=max(drawn.depth.shape))
    ends = seen or (1.0, 2.0)  # any will do for a picture of nothing
    return depth_picture(levels, ends, ends)


def normals_from_depth(drawn: Rendering, camera: Cameras) -> Tensor:
    """[H, W, 3] unit normals in world space of the surface that the depth describes, towards the camera; 0 where there
    is none. From differences of neighbouring pixels, so edges of things have arbitrary ones."""
    rays = camera.rays()
    points = rays.origins[0] + rays.directions[0] * drawn.depth
    if min(points.shape[:2]) < 2:
        return torch.zeros_like(points)
    down, right = (torch.gradient(points, dim=axis)[0] for axis in (0, 1))
    normal = F.normalize(torch.linalg.cross(right, down), dim=-1)
    away = (normal * rays.directions[0]).sum(-1, keepdim=True) > 0
    return torch.where(away, -normal, normal) * (drawn.alpha >= OPAQUE)


def in_window(pixels: np.ndarray, photograph: Cameras, window: Cameras) -> np.ndarray:
    """A picture in a photograph's pixels put where that lies in the window of a camera at the same place.

    Args:
        pixels: uint8 [H, W, 3], of the whole photograph, at any size.
        photograph: its camera [1].
        window: the camera [1] of the window.

    Returns:
        uint8 [H', W', 3] of the window's size, grey around.
    """
    width, height = window.sizes[0].tolist()
    (fx, fy), (cx, cy) = (_pair(photograph.Ks, *at) for at in ((0, 1), (2, 2)))
    scale_x, scale_y = float(window.Ks[0, 0, 0]) / fx, float(window.Ks[0, 1, 1]) / fy
    left, top = width / 2 - cx * scale_x, height / 2 - cy * scale_y
    wide, high = (int(side) for side in photograph.sizes[0])
    # Which part of the picture each pixel of the window shows: an enlargement with pixels that stay visible.
    step_x, step_y = scale_x * wide / pixels.shape[1], scale_y * high / pixels.shape[0]
    columns = np.floor((np.arange(width) + 0.5 - left) / step_x).astype(int)
    rows = np.floor((np.arange(height) + 0.5 - top) / step_y).astype(int)
    inside_x = (columns >= 0) & (columns < pixels.shape[1])
    inside_y = (rows >= 0) & (rows < pixels.shape[0])
    result = np.full((height, width, 3), _AROUND, np.uint8)
    result[np.ix_(inside_y, inside_x)] = pixels[np.ix_(rows[inside_y], columns[inside_x])]
    return result


def _pair(Ks: Tensor, first: int, second: int) -> tuple[float, float]:
    """fx and fy, or cx and cy."""
    return float(Ks[0, 0, first]), float(Ks[0, 1, second])
