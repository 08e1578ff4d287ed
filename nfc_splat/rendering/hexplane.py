"""HexPlane: features of points in space and time as a product of six planes, at several resolutions.

A level has the planes (x, y), (x, z), (y, z) and (x, t), (y, t), (z, t). A point is looked up in each of them, between
its four nearest nodes, and the six values are multiplied channel by channel; levels are put side by side. All points of
a call share one time, because a picture has one: the time planes then are lines, which are found once.

A level is a pair of tensors, channels last:
    spatial [3, R, R, C]    planes (x, y), (x, z), (y, z); the row is the second axis of the pair, the column the first
    temporal [3, T, R, C]   planes (x, t), (y, t), (z, t); the row is time

Symbols: L levels, R nodes along an axis of space and T along time (2 or more; both may differ from level to level),
C channels (the same on all levels), M points. The first and the last node of an axis lie on the faces of the box.
Sources: Cao & Johnson 2023 (HexPlane, arXiv 2301.09632); Wu et al. 2024 (4DGS, arXiv 2310.08528), section 4.2.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from nfc_splat.rendering.kernels.backends import choose_kernel

Backend = Literal["auto", "reference", "cpu", "cuda"]
Level = tuple[Tensor, Tensor]

_REFERENCE, _CPU = "nfc_splat.rendering.kernels.hexplane_reference", "nfc_splat.rendering.kernels.hexplane_cpu"
IMPLEMENTATIONS = {
    "reference": (_REFERENCE, "hexplane_reference"),
    "cpu": (_CPU, "hexplane_cpu"),
    "cuda": (_REFERENCE, "hexplane_grid_sample"),
}


def interpolate_hexplane(
    levels: Sequence[Level],  # L pairs: spatial [3, R, R, C], temporal [3, T, R, C]
    points: Tensor,  # [M, 3]
    time: Tensor,  # []
    low: Tensor,  # [4]
    high: Tensor,  # [4]
    backend: Backend = "auto",
) -> Tensor:
    """Features of points at one time.

    The same as six times torch's `grid_sample(align_corners=True, padding_mode="border")` and a product: what lies
    outside the box is looked up at the nearest place of its surface, and there the gradient of its position is 0.
    Gradients reach the planes (dense), `points` and `time`.

    Args:
        levels: one or more.
        low, high: corners of the box in space and time (x, y, z, t), in the units of `points` and `time`.
        backend: "auto" is "cuda" for tensors on a CUDA device and "cpu" for those in main memory. "reference" is plain
            torch, any float dtype, twice differentiable, slow.

    Returns:
        [M, L * C], level by level.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit; the message names it.
        UserError: the backend asked for cannot serve these tensors; the message says what to do.
    """
    _check(levels, points, time, low, high)
    function = choose_kernel("HexPlanes", IMPLEMENTATIONS, points, backend)
    return function(levels, points, time, low, high)


def _check(levels: Sequence[Level], points: Tensor, time: Tensor, low: Tensor, high: Tensor) -> None:
    """Raise ValueError with the name of the first argument that does not fit."""
    if not levels:
        raise ValueError("levels must hold one or more pairs of planes")
    channels = levels[0][0].shape[-1]
    for number, (spatial, temporal) in enumerate(levels):
        nodes = spatial.shape[1] if spatial.dim() == 4 else 0
        if tuple(spatial.shape) != (3, nodes, nodes, channels) or nodes < 2 or channels < 1:
            raise ValueError(
                f"level {number}: spatial must be [3, R, R, {channels}], R >= 2; got {list(spatial.shape)}"
            )
        rows = temporal.shape[1] if temporal.dim() == 4 else 0
        if tuple(temporal.shape) != (3, rows, nodes, channels) or rows < 2:
            expected = f"[3, T, {nodes}, {channels}], T >= 2"
            raise ValueError(f"level {number}: temporal must be {expected}; got {list(temporal.shape)}")
    if points.dim() != 2 or points.shape[1] != 3 or not points.is_floating_point():
        raise ValueError(f"points must be floating point [M, 3]; got {points.dtype} {list(points.shape)}")
    if time.dim() != 0:
        raise ValueError(f"time must be a scalar tensor; got {list(time.shape)}")
    if low.shape != (4,) or high.shape != (4,):
        raise ValueError(f"low and high must be [4]; got {list(low.shape)} and {list(high.shape)}")
    named = {"time": time, "low": low, "high": high}
    named |= {f"planes of level {n}": plane for n, level in enumerate(levels) for plane in level}
    for name, tensor in named.items():
        if tensor.dtype != points.dtype or tensor.device != points.device:
            raise ValueError(
                f"{name} must be {points.dtype} on {points.device}, like the points; "
                f"got {tensor.dtype} on {tensor.device}"
            )
