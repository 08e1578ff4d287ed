"""Ray marching: from what a field says of points to what a camera sees.

A method supplies `Field`'s two functions and chooses its samples; everything else is here:

    class Fog(MarchedModel):
        def march(self, rays, background):
            return composite(self, stratified(rays, 2.0, 6.0, 64, jitter=self.training), background)
        def alpha(self, samples):
            return alpha_from_density(self.density(samples.positions), samples.widths), None
        def color(self, samples, features):
            return self.rgb(samples.positions).sigmoid()

Symbols: R rays, M samples of all rays together, L logits per colour channel, `*request` the shape asked for.
"""

import abc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.cameras import Cameras, Rays
from nfc_splat.rendering import Rendering, SceneModel
from nfc_splat.rendering.packed import accumulate, render_weights
from nfc_splat.rendering.samples import Samples, flat_rays

RENDER_BYTES = 2**28  # memory for the samples of one chunk of rays when drawing
NORMALS_FACTOR = 3  # of that for what the gradient of alpha keeps


class Field(Protocol):
    """What the marcher asks of a scene.

    Attributes:
        draw_normals: whether to draw normals, from the gradient of alpha.
        encoding: the `nfc_splat.losses.TargetEncoding` of the bits, where there are any.
    """

    draw_normals: bool
    encoding: Any

    def alpha(self, samples: Samples) -> tuple[Tensor, Any]:
        """How opaque each sample's interval is, [M] in [0, 1], and whatever `color` wants to reuse: None, or a tensor
        [M, ...]."""

    def color(self, samples: Samples, features: Any) -> Tensor:
        """[M, 3] decoded colours; for the bit-wise loss [M, 3 + 3 L], with the bits' probabilities behind them."""


Move = Callable[[Samples], Samples]


class MovedField:
    """A field asked at other places than where the rays are: a static scene behind a deformation.

    Colours are asked for with the samples as they are on the rays: viewing directions are not deformed.
    """

    def __init__(self, field: Field, move: Move) -> None:
        """move: samples on the rays -> the same samples where the field knows them."""
        self.field, self.move = field, move
        self.draw_normals, self.encoding = field.draw_normals, field.encoding

    def alpha(self, samples: Samples) -> tuple[Tensor, Any]:
        return self.field.alpha(self.move(samples))

    def color(self, samples: Samples, features: Any) -> Tensor:
        return self.field.color(samples, features)


class MarchedModel(SceneModel):
    """A scene drawn by marching along rays. Subclasses are `Field`s and define `march`.

    Attributes:
        draw_normals: also draw `Rendering.normal`, from the gradient of alpha; at about twice the time.
        ray_bytes: estimate of the memory that drawing one ray takes, from which the number of rays in a chunk follows.
    """

    request: ClassVar = "rays"
    draw_normals: bool = False
    ray_bytes: int = 2**16

    @abc.abstractmethod
    def march(self, rays: Rays, background: Tensor) -> Rendering:
        """Draw a list of rays [R] over `background`, [3] or [R, 3]: choose samples, then `composite` them."""

    def render(self, cameras: Cameras, pixels: Tensor | None = None, *, background: Tensor) -> Rendering:
        """See `SceneModel.render`. In training mode all rays are marched at once, for one backward pass; otherwise in
        chunks of about `RENDER_BYTES`, without `extras`."""
        rays = cameras.rays(pixels)
        request = rays.origins.shape[:-1]
        rays = flat_rays(rays)
        if background.ndim > 1:
            background = background.reshape(-1, 3)
        if self.training:
            drawn = self.march(rays, background)
        else:
            drawn = _joined([self.march(*part) for part in _chunks(rays, background, self._rays_at_once())])
        return _reshaped(drawn, request)

    def _rays_at_once(self) -> int:
        return max(1, RENDER_BYTES // (self.ray_bytes * (NORMALS_FACTOR if self.draw_normals else 1)))


def composite(
    field: Field,
    samples: Samples,
    background: Tensor,  # [3] or [R, 3]
    *,
    alpha_threshold: float = 0.0,
    weight_threshold: float = 0.0,
    stop: float = 0.0,
) -> Rendering:
    """Volume rendering (NeRF, Eq. 3) of packed samples: colour = sum w c + T background, w = T alpha.

    Args:
        field: asked for the opacity of every sample, and for the colour of those that matter.
        samples: M samples of R rays.
        background: behind the scene, added after decoding.
        alpha_threshold: samples with a smaller or equal alpha are taken for empty.
        weight_threshold: colours are only asked for where the weight is larger; a sample with less still hides what
            is behind it, but adds no colour.
        stop: a ray ends once less than this of it goes on.

    Returns:
        A `Rendering` of R rays whose `extras` are: "samples" [M'] and "weights" [M'] of those whose colour was asked
        for, "colors" [M', 3], "features", their rows of what `alpha` gave, and "transmittance" [R], what is left of
        each ray at its end.
    """
    alphas, features = field.alpha(samples)
    if alpha_threshold > 0:
        samples, rows = samples.keep(alphas.detach() > alpha_threshold)
        alphas, features = alphas.index_select(0, rows), _rows(features, rows)
    weights, transmittance = render_weights(alphas, samples.offsets, stop=stop)
    shown = weights.detach() > weight_threshold
    if not shown.all():
        samples, rows = samples.keep(shown)
        weights, features = weights.index_select(0, rows), _rows(features, rows)
    values = field.color(samples, features)
    t = samples.t[:, None].to(values)
    summed = accumulate(weights, torch.cat([values, t, torch.ones_like(t)], 1), samples.offsets)
    left = transmittance[:, None]
    color = summed[:, :3] + left * background
    depth = summed[:, -2:-1] / summed[:, -1:].clamp_min(1e-10)
    bits = normal = None
    if values.shape[1] > 3:
        behind = field.encoding.encode(background.to(values))
        bits = summed[:, 3:-2].view(len(left), 3, -1) + left[..., None] * behind
    if field.draw_normals:
        normal = _normals(field, samples, weights) * (left < 1)
    extras = {
        "samples": samples,
        "weights": weights,
        "colors": values[:, :3],
        "features": features,
        "transmittance": transmittance,
    }
    return Rendering(color, 1 - left, depth, normal, bits, extras=extras)


def alpha_from_density(density: Tensor, widths: Tensor) -> Tensor:
    """alpha = 1 - exp(-density width), [M] of [M] densities per world length (at least 0) and [M] widths."""
    return -torch.expm1(-density * widths)


def _normals(field: Field, samples: Samples, weights: Tensor) -> Tensor:
    """[R, 3] unit normals, opposite to the gradient of alpha, turned towards the camera; 0 where nothing is hit."""
    with torch.enable_grad():
        probe = samples.moved_to(samples.positions.detach().requires_grad_())
        alphas, _ = field.alpha(probe)
        (gradient,) = torch.autograd.grad(alphas.sum(), probe.positions)
    normal = accumulate(weights.detach(), F.normalize(-gradient, dim=-1), samples.offsets)
    away = (normal * samples.rays.directions).sum(-1, keepdim=True) > 0
    return F.normalize(torch.where(away, -normal, normal), dim=-1)


def _rows(features: Any, rows: Tensor) -> Any:
    return None if features is None else features.index_select(0, rows)


def _chunks(rays: Rays, background: Tensor, size: int) -> list[tuple[Rays, Tensor]]:
    """Parts of at most `size` rays with their background; one part when there are no rays."""
    parts = []
    for first in range(0, max(len(rays.origins), 1), size):
        part = slice(first, first + size)
        times = None if rays.times is None else rays.times[part]
        chunk = replace(rays, origins=rays.origins[part], directions=rays.directions[part], times=times)
        parts.append((chunk, background[part] if background.ndim > 1 else background))
    return parts


def _joined(parts: list[Rendering]) -> Rendering:
    """One Rendering of all rays, without auxiliary ones and extras."""
    join = lambda name: None if getattr(parts[0], name) is None else torch.cat([getattr(p, name) for p in parts])  # noqa: E731
    return Rendering(*(join(name) for name in ("color", "alpha", "depth", "normal", "bits")))


def _reshaped(drawn: Rendering, request: torch.Size) -> Rendering:
    shape = lambda value: None if value is None else value.reshape(*request, *value.shape[1:])  # noqa: E731
    return Rendering(
        *(shape(getattr(drawn, name)) for name in ("color", "alpha", "depth", "normal", "bits")),
        auxiliary=tuple(_reshaped(part, request) for part in drawn.auxiliary),
        extras=drawn.extras,
    )
