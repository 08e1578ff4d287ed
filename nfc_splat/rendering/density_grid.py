"""Grids of raw densities that become opacities after interpolation (DVGO, Sun et al. 2022, section 4.2).

Symbols: R rays, M samples, X, Y, Z nodes. A raw density d has over the length `interval` (in base voxels) the opacity
alpha = 1 - (1 + exp(d + shift))^(-interval).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.rendering.grids import interpolate_grid
from nfc_splat.rendering.occupancy import Norm, contract
from nfc_splat.rendering.packed import Backend, render_weights
from nfc_splat.rendering.samples import Samples


def activation_shift(alpha: float) -> float:
    """The shift that gives a raw density of 0 the opacity `alpha`, in (0, 1), over a length of 1 (Eq. 9)."""
    return math.log(alpha / (1 - alpha))


def opacity(raw: Tensor, shift: float, interval: float) -> Tensor:
    """Opacities of raw densities of any shape. It is the same as 1 - exp(-softplus(raw + shift) interval), and computed
    so, because that loses no digits."""
    return -torch.expm1(F.softplus(raw + shift) * -interval)


@torch.no_grad()
def visible_samples(
    samples: Samples,
    grid: Tensor,  # [X, Y, Z, 1]
    low: Tensor,  # [3] the box's corners, in the grid's coordinates
    high: Tensor,  # [3]
    *,
    shift: float,
    interval: float,
    threshold: float,
    stop: float,
    center: Tensor | None = None,  # [3]
    radius: float = 1.0,
    contraction: Norm | None = None,
    shell: float = 0.2,
    backend: Backend = "auto",
) -> Samples:
    """The samples whose opacity is above the threshold and that are not hidden behind opaque ones.

    What a compositor leaves out anyhow: it asks the field, with gradients, for a few samples per ray then instead of
    all of them.

    Args:
        grid: raw densities at nodes that fill the box from `low` to `high`.
        shift, interval: of the opacity.
        threshold: on the opacity, in [0, 1).
        stop: a ray ends behind the sample that brings what is left of it below this.
        center, radius: world points are shifted and divided by these to become the grid's coordinates.
        contraction, shell: and contracted then, if this is a norm.
    """
    rays = samples.rays
    center = rays.origins.new_zeros(3) if center is None else center
    if backend == "auto":
        on_cpu = grid.device.type == "cpu" and grid.dtype == samples.t.dtype == torch.float32
        backend = "cpu" if on_cpu else "reference"
    if backend == "cpu":
        from nfc_splat.rendering.kernels.visible_cpu import visible

        numbers = (shift, interval, threshold, stop)
        return visible(grid, samples, low, high, *numbers, center, radius, contraction, shell)
    origins, directions = (rays.origins - center) / radius, rays.directions / radius
    points = origins[samples.ray] + directions[samples.ray] * samples.t[:, None]
    if contraction is not None:
        points = contract(points, contraction, shell)
    kind = "auto" if grid.device.type == "cuda" else "reference"
    alphas = opacity(interpolate_grid(grid, points, low, high, backend=kind)[:, 0], shift, interval)
    alphas = torch.where(alphas > threshold, alphas, torch.zeros_like(alphas))
    weights, _ = render_weights(alphas, samples.offsets, stop=stop)
    return samples.keep(weights > 0)[0]
