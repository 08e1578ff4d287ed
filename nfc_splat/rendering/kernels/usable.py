"""Which Gaussians may be drawn: one rule for the three rasterisers, so that a poisoned row never reaches a pixel.

A row is usable when
    1. every value of it that the call reads (mean, quaternion, scales, opacity, and its colour or the spherical-
       harmonics coefficients of the active degree, unless only depth is drawn) is finite and at most `LARGEST` in
       magnitude;
    2. its quaternion q has `SMALLEST_QUATERNION` < q.q <= `LARGEST`, so that normalising it means something.
It is usable in a camera when besides
    3. its camera-space depth z lies in [near_plane, far_plane], which is gsplat's test;
    4. its footprint max|scale| * max(fx, fy) / z is at most `LARGEST_FOOTPRINT` pixels: what is larger would overflow
       the determinant of its 2D covariance in float32.
A row that fails is culled: radii 0, no pixel, gradient 0. An opacity above 1 counts as 1; one below 1/255 is culled by
gsplat's own test. Zero scales are fine (a dot of `eps2d` square pixels).

The bounds are far from any real scene and far from the limits of float32 (3.4e38), so that implementations in single
and in double precision agree on every row.

Symbols: N Gaussians, C cameras.
"""

import torch
from torch import Tensor

LARGEST = 1e15
SMALLEST_QUATERNION = 1e-20
LARGEST_FOOTPRINT = 1e8


def values_read(colors: Tensor, sh_rest: Tensor | None, sh_degree: int | None, render_mode: str) -> tuple[Tensor, ...]:
    """The parts of a scene's colours that a rasterisation reads; empty where only depth is drawn.

    Args:
        colors: [N, D] colours, or [N, 1, 3] constant SH terms.
        sh_rest: [N, K-1, 3] further SH terms, or None.
        sh_degree: active degree, or None for plain colours.
        render_mode: as in `rasterize`.
    """
    if render_mode in ("D", "ED"):
        return ()
    if sh_degree is None or sh_rest is None:
        return (colors,)
    return (colors, sh_rest[:, : (sh_degree + 1) ** 2 - 1])


@torch.no_grad()
def usable_rows(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: tuple[Tensor, ...]) -> Tensor:
    """Rules 1 and 2 of the module docstring: [N] bool.

    Args:
        means, quats, scales, opacities: [N, 3], [N, 4], [N, 3], [N].
        colors: what `values_read` gave, each [N, ...].
    """
    squared = quats.square().sum(-1)
    usable = (squared > SMALLEST_QUATERNION) & (squared <= LARGEST)
    for values in (means, scales, opacities[:, None], *colors):
        if values.numel():
            low, high = torch.aminmax(values.flatten(1), dim=1)
            usable = usable & (low >= -LARGEST) & (high <= LARGEST)  # false for NaN, which aminmax passes on
    return usable


@torch.no_grad()
def usable_footprints(scales: Tensor, depths: Tensor, Ks: Tensor) -> Tensor:
    """Rule 4 of the module docstring: [C, N] bool. True says nothing about depths that are not positive.

    Args:
        scales: [N, 3].
        depths: [C, N] camera-space z.
        Ks: [C, 3, 3].
    """
    focal = torch.maximum(Ks[:, 0, 0], Ks[:, 1, 1])[:, None]
    return scales.abs().amax(-1) * focal <= LARGEST_FOOTPRINT * depths
