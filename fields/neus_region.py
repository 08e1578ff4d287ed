"""Where the surface of a NeuS scene may be, and where rays are sampled: within that region, and behind it.

A region is a cube of half side `radius` about `center`, or the sphere inscribed in it. Local coordinates make it
[-1, 1]^3 or the unit ball; local distances along a ray are lengths in radii.

Symbols: R rays, S samples per ray, M samples in all, N points.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from nfc_splat.cameras import Rays
from nfc_splat.fields.depth_range import focus_distances
from nfc_splat.fields.marched import warn_of_misses
from nfc_splat.fields.neus_config import Config
from nfc_splat.fields.ngp_space import enclosing_cube
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.fields.sdf_alpha import sampling_weights, up_sample
from nfc_splat.rendering.occupancy import ray_box
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.sharing import rand

NEAR = 0.05  # radii before which nothing is drawn
FARTHEST = 1000.0  # radii, where the contracted background ends
FIRST_SHARPNESS = 64.0  # s of the first round of finer samples
THINNEST = 1e-6  # length of the range of a ray that misses the region


class Region(nn.Module):
    """The region of a scene, and the samplers.

    Attributes:
        center: [3]. radius: [] world units. inside_out: [] bool, whether cameras are within a hollow space.
    """

    center: Tensor
    radius: Tensor

    def __init__(self, center: Tensor, radius: float, inside_out: bool, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("center", center.float())
        self.register_buffer("radius", torch.tensor(radius, dtype=torch.float32))
        self.register_buffer("inside_out", torch.tensor(inside_out))

    def to_local(self, points: Tensor) -> Tensor:
        """World points [N, 3] in radii from the centre."""
        return (points - self.center) / self.radius

    @property
    def bounds(self) -> Tensor:
        """[2, 3] the cube's corners in world space."""
        return torch.stack([self.center - self.radius, self.center + self.radius])

    def near_far(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Local distances [R] between which rays are in the region; a thin range where they miss it."""
        origins, directions = self._local(rays)
        if self.config.region == "box":
            one = torch.ones_like(self.center)
            near, far = ray_box(origins, directions, -one, one, NEAR, math.inf)
            near = torch.where(near.isfinite(), near, NEAR)
        else:
            middle = -(origins * directions).sum(-1)
            near, far = (middle - 1).clamp_min(NEAR), middle + 1
        return near, torch.maximum(far, near + THINNEST)

    def sections(self, rays: Rays, distance: Callable[[Tensor], Tensor], jitter: bool) -> Samples:
        """NeuS's hierarchical samples, `coarse_samples + fine_samples` on every ray.

        Args:
            distance: the field: local points [N, 3] -> [N].
            jitter: at random places, one draw for each ray.
        """
        with torch.no_grad():
            start, end = self._section_ends(rays, distance, jitter)
        middle = 0.5 * (start + end)
        samples = self._samples(rays, middle, end - start)
        if self.config.section_point == "start":
            origins, directions = self._local(rays)
            local = origins[:, None] + start[..., None] * directions[:, None]
            samples.__dict__["positions"] = (self.center + self.radius * local).view(-1, 3)
        return samples

    def _section_ends(self, rays: Rays, distance: Callable[[Tensor], Tensor], jitter: bool) -> tuple[Tensor, Tensor]:
        """Local distances [R, S] where sections start and end."""
        config, original = self.config, self.config.variant == "original"
        origins, directions = self._local(rays)
        near, far = (value[:, None] for value in self.near_far(rays))
        t, last = _even(near, far, config.coarse_samples, jitter, original)
        at = lambda t: distance((origins[:, None] + t[..., None] * directions[:, None]).view(-1, 3)).view_as(t)  # noqa: E731
        values, count = at(t), config.fine_samples // config.fine_rounds
        for turn in range(config.fine_rounds if count else 0):
            weights = sampling_weights(t, values, FIRST_SHARPNESS * 2**turn, self._inner(t, origins, directions))
            if original:
                new = up_sample(t, weights, count, 0.5)
            else:
                offset = rand(*near.shape, like=near) if jitter else 0.5
                edges, padded = torch.cat([t, last], 1), nn.functional.pad(weights, (0, 1))
                new = up_sample(edges, padded, count + 1, offset)[:, :count]
            t, order = torch.cat([t, new], 1).sort(dim=1)
            if turn < config.fine_rounds - 1:
                values = torch.cat([values, at(new)], 1).gather(1, order)
        if original:
            last = t[:, -1:] + 2 / config.coarse_samples
        return t, torch.cat([t[:, 1:], torch.maximum(last, t[:, -1:])], 1)

    def _inner(self, t: Tensor, origins: Tensor, directions: Tensor) -> Tensor | None:
        """[R, S - 1] sections with an end in the unit ball, which alone have a slope in the original."""
        if self.config.variant != "original":
            return None
        inside = (origins[:, None] + t[..., None] * directions[:, None]).norm(dim=-1) < 1
        return inside[:, 1:] | inside[:, :-1]

    def steps(self, rays: Rays, occupied: Tensor, s: float, jitter: bool) -> Samples:
        """Even steps through the occupied cells [G, G, G] of the cube; shifted by up to a step with `jitter`. They are
        1 / s long, as a blurred surface needs no finer ones, but no shorter than `march_steps` make them."""
        offset = rand(len(rays.origins), like=self.center) if jitter else 0.5
        low, high = self.bounds
        radius = float(self.radius)
        step = max(2 * math.sqrt(3) / self.config.march_steps, 1 / s) * radius
        length = rays.directions.norm(dim=-1)
        near = NEAR * radius / length
        return box_steps(rays, low, high, step, near=near, offset=offset, occupancy=occupied)

    def behind(self, rays: Rays, kind: str, jitter: bool) -> Samples:
        """`background_samples` on every ray behind the region: evenly in 1/t up to `FARTHEST` ("contracted"), or as the
        original places them ("sphere")."""
        _, far = self.near_far(rays)
        count = self.config.background_samples
        if kind == "contracted":
            share = torch.linspace(0, 1, count + 1, device=far.device)
            share = _jittered(share.expand(len(far), -1)) if jitter else share
            edges = 1 / ((1 - share) / far[:, None] + share / FARTHEST)
            return self._samples(rays, 0.5 * (edges[:, 1:] + edges[:, :-1]), edges[:, 1:] - edges[:, :-1])
        share = torch.linspace(1e-3, 1 - 1 / (count + 1), count, device=far.device)
        share = _jittered(share.expand(len(far), -1)) if jitter else share[None]
        t = far[:, None] / share.flip(1) + 1 / self.config.coarse_samples
        last = t.new_full((len(t), 1), 2 / self.config.coarse_samples)
        delta = torch.cat([t[:, 1:] - t[:, :-1], last], 1)
        return self._samples(rays, t + 0.5 * delta, delta)

    def _samples(self, rays: Rays, t: Tensor, delta: Tensor) -> Samples:
        """Samples at local distances [R, S]."""
        length = rays.directions.norm(dim=-1, keepdim=True)
        return Samples.dense(rays, t * self.radius / length, delta * self.radius)

    def _local(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Origins [R, 3] and unit directions [R, 3] of the rays in local coordinates."""
        return self.to_local(rays.origins), nn.functional.normalize(rays.directions, dim=-1)

    def described(self) -> str:
        """One line."""
        center = ", ".join(f"{value:.4g}" for value in self.center.tolist())
        what = f"a {self.config.region} {2 * float(self.radius):.4g} wide about ({center})"
        return f"{what}, seen from within" if self.inside_out else f"{what}, seen from outside"

    def warn_of_misses(self, rays: Rays) -> None:
        """Warn when hardly a ray meets the region."""
        near, far = self.near_far(rays)
        if self.config.region == "box":
            hit = far - near > 2 * THINNEST
        else:
            origins, directions = self._local(rays)
            hit = torch.linalg.cross(origins, directions).norm(dim=-1) < 1
        size = 2 * float(self.radius)
        remedy = f"try --region-scale 2 (the region is {size:.3g} wide now)"
        warn_of_misses(hit, "the region of the scene", remedy)


def joined(first: Samples, then: Samples) -> tuple[Samples, Tensor]:
    """On every ray the samples of `first` and then those of `then`; and which of all [M] bool are the latter. Both
    keep the positions that they have."""
    ray, order = torch.cat([first.ray, then.ray]).sort(stable=True)
    pick = lambda name: torch.cat([getattr(first, name), getattr(then, name)]).index_select(0, order)  # noqa: E731
    offsets = first.offsets + then.offsets
    samples = replace(first, t=pick("t"), widths=pick("widths"), ray=ray, offsets=offsets, steps=None)
    samples.__dict__["positions"] = pick("positions")
    return samples, order >= len(first)


def choose_region(config: Config, geometry: SceneGeometry) -> Region:
    """What the files state as bounds or sphere; else the cube around points, or what the cameras see."""
    if geometry.sphere is not None and (config.region == "sphere" or geometry.bounds is None):
        sphere = geometry.sphere.float().cpu()
        center, radius = sphere[:3], float(sphere[3])
    else:
        center, radius = enclosing_cube(geometry)
    inside_out = config.orientation == "inside_out"
    if config.orientation == "auto":
        away = (geometry.cameras.to("cpu").centers.float() - center).abs().amax(1)
        within = bool((away < radius).float().mean() > 0.5)
        inside_out = within or focus_distances(geometry) is None
    return Region(center, radius * config.region_scale, inside_out, config)


def _even(near: Tensor, far: Tensor, count: int, jitter: bool, original: bool) -> tuple[Tensor, Tensor]:
    """Even local distances [R, count], shifted on each ray with `jitter`, and where the last section ends [R, 1]."""
    device = near.device
    if original:
        t = near + (far - near) * torch.linspace(0, 1, count, device=device)
        shift = (rand(*near.shape, like=near) - 0.5) * (2 / count) if jitter else 0.0
        return t + shift, far
    share = torch.linspace(0, 1, count + 1, device=device)
    edges = near + (far - near) * (_jittered(share[None], rand(*near.shape, like=near)) if jitter else share)
    return edges[:, :-1], edges[:, -1:]


def _jittered(share: Tensor, draw: Tensor | None = None) -> Tensor:
    """Ascending numbers [R, K], each moved between the middles to its neighbours by `draw` in [0, 1], by default one
    of its own."""
    middle = 0.5 * (share[:, 1:] + share[:, :-1])
    low, high = torch.cat([share[:, :1], middle], 1), torch.cat([middle, share[:, -1:]], 1)
    return low + (high - low) * (rand(*share.shape, like=share) if draw is None else draw)
