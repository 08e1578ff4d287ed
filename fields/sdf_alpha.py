"""From signed distances to opacities (Wang et al. 2021, "NeuS", section 3.1), and where to sample a ray for them.

A section of a ray is `delta` long and has a distance f and a slope along the ray. Phi(f) = sigmoid(s f) says how far in
front of the surface a point is, and a section is as opaque as Phi falls within it (Eq. 13): unbiased, and blind to
surfaces seen from behind.

Symbols: M sections in all; R rays of S samples each. Lengths are in one unit, whichever; s is in its inverse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfc_splat.rendering.samplers import invert_pdf

TINY = 1e-5  # keeps Phi's ratio finite; a section is never quite transparent, and opaque deep inside of matter
STEEPEST = 1e3


class Sharpness(nn.Module):
    """s of Phi: exp(10 v) between 1e-6 and 1e6, with one trained number v."""

    def __init__(self, v: float) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.tensor(float(v)))

    def forward(self) -> Tensor:
        """[] s."""
        return (10 * self.v).exp().clamp(1e-6, 1e6)


def section_alpha(distance: Tensor, slope: Tensor, delta: Tensor, s: Tensor, anneal: float = 1.0) -> Tensor:
    """Opacities [M] in [0, 1] of sections (NeuS, Eq. 13, with the released code's annealed slope).

    Args:
        distance: [M] f at the section's point.
        slope: [M] derivative of f along the ray, the gradient times the unit direction.
        delta: [M] length.
        s: [].
        anneal: 0 takes (slope - 1) / 2 for the slope, which moves surfaces seen from behind too; 1 the slope where it
            falls and 0 where it rises; between, their mixture.
    """
    fall = (0.5 - 0.5 * slope).relu() * (1 - anneal) + (-slope).relu() * anneal
    half = 0.5 * fall * delta
    return _alpha(distance + half, distance - half, s).clamp(0, 1)


def _alpha(before: Tensor, after: Tensor, s: Tensor | float) -> Tensor:
    phi = (before * s).sigmoid()
    return (phi - (after * s).sigmoid() + TINY) / (phi + TINY)


@torch.no_grad()
def sampling_weights(t: Tensor, distance: Tensor, s: float, inner: Tensor | None = None) -> Tensor:
    """Weights [R, S - 1] of the sections between samples, from distances alone and with a fixed s.

    The slope of a section is the smaller one of its own and the one before it (0 before the first), never positive.

    Args:
        t: [R, S] ascending. distance: [R, S].
        inner: [R, S - 1] bool; other sections have slope 0. None when all count.
    """
    delta = t[:, 1:] - t[:, :-1]
    slope = (distance[:, 1:] - distance[:, :-1]) / (delta + 1e-5)
    slope = torch.minimum(slope, F.pad(slope[:, :-1], (1, 0))).clamp(-STEEPEST, 0)
    if inner is not None:
        slope = slope * inner
    middle, half = 0.5 * (distance[:, 1:] + distance[:, :-1]), 0.5 * slope * delta
    alpha = _alpha(middle - half, middle + half, s)
    through = (1 - alpha + 1e-7).cumprod(1)
    return alpha * F.pad(through[:, :-1], (1, 0), value=1.0)


@torch.no_grad()
def up_sample(edges: Tensor, weights: Tensor, count: int, offset: Tensor | float) -> Tensor:
    """`count` new distances per ray [R, count] where weights are large.

    Args:
        edges: [R, B + 1]. weights: [R, B].
        offset: where in each of `count` equal shares of the cumulated weights, [0, 1) or [R, 1].
    """
    shares = torch.arange(count, device=edges.device, dtype=edges.dtype).expand(len(edges), count)
    return invert_pdf(edges, weights, (shares + offset) / count)
