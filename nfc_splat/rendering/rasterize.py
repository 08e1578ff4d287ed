"""Rasterise 3D Gaussians: one function, three implementations, gsplat's conventions.

Symbols: N Gaussians, C cameras, H rows, W columns, K spherical-harmonics coefficients, D channels.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class RasterInfo:
    """What densification and the tests need of a rasterisation.

    Attributes:
        means2d: [C, N, 2] projected centres in pixels, in the autograd graph: `retain_grad()` it to read the
            screen-space gradient. With `absgrad`, `means2d.absgrad` [C, N, 2] exists after the backward pass.
        radii: [C, N, 2] int32 extent in pixels along x and y; 0 where the Gaussian was culled.
        depths: [C, N] camera-space z.
        conics: [C, N, 3] upper triangle of the inverse 2D covariance.
        opacities: [C, N] opacities as used (compensated when antialiased).
        width, height: of the images in pixels.
    """

    means2d: Tensor
    radii: Tensor
    depths: Tensor
    conics: Tensor
    opacities: Tensor
    width: int
    height: int


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4] wxyz, normalised inside
    scales: Tensor,  # [N, 3] standard deviations
    opacities: Tensor,  # [N] in [0, 1]
    colors: Tensor | tuple[Tensor, Tensor],  # [N, D], or SH [N, K, 3], or the pair (sh0 [N, 1, 3], shN [N, K-1, 3])
    viewmats: Tensor,  # [C, 4, 4] world to camera, OpenCV axes
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    absgrad: bool = False,
    backend: Literal["auto", "reference", "cpu", "cuda"] = "auto",
) -> tuple[Tensor, Tensor, RasterInfo]:
    """Draw Gaussians; see gsplat's `rasterization`, whose argument names, shapes and conventions these are.

    Returns:
        colors [C, H, W, D (+1 for depth, last)], alphas [C, H, W, 1], and the `RasterInfo`.
    """
    raise RuntimeError("being written")
