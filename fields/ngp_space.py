"""Where the field of `ngp` lives: how world space becomes the unit cube, and how rays are sampled there.

Two kinds of space:
    box         a cube about the object; nothing is outside it
    contracted  all of space: a cube of half side `radius` about the centre stays as it is and fills the middle half of
                the unit cube, and what is outside fills the rest (mip-NeRF 360, Eq. 10, with the maximum norm)

Symbols: R rays, M samples, N points, K steps of the table of distances.
"""

import math

import torch
from torch import Tensor, nn

from nfc_splat.cameras import Rays
from nfc_splat.fields.depth_range import depth_range, focus, focus_distances
from nfc_splat.fields.marched import warn_of_misses
from nfc_splat.fields.ngp_config import Config
from nfc_splat.fields.recipe import SceneGeometry
from nfc_splat.rendering.occupancy import contract, march_occupancy, ray_box, uncontract
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.sharing import rand

SHELL = 1.0  # b of `contract`: the outside is as wide as the half side of the inside
MARGIN = 1.1  # of the box around what the cameras have in view
OUTLIERS = 0.02  # share of the points on each side that the box need not hold
OUTWARDS = 3.0  # half side of a room in extents of the cameras in it, where there are no points
MOST = 0.75  # share of the points that the inner part of a room holds
FARTHEST = 1000.0  # in radii, where a contracted ray ends


class Space(nn.Module):
    """A cube of half side `radius` about `center`, and whether there is something outside it.

    Attributes:
        center: [3]. radius: [] world units. near: [] depth before which nothing is drawn, world units.
        contracted: [] bool.
    """

    def __init__(self, center: Tensor, radius: float, near: float, contracted: bool, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("center", center.float())
        self.register_buffer("radius", torch.tensor(radius, dtype=torch.float32))
        self.register_buffer("near", torch.tensor(near, dtype=torch.float32))
        self.register_buffer("contracted", torch.tensor(contracted))
        # The host's own: a device that is asked each time makes every step wait for it.
        self._radius, self._near, self._contracted = float(self.radius), float(self.near), contracted
        table = _distances(self.step, config.cone) if contracted else torch.zeros(1)
        self.register_buffer("table", table, persistent=False)

    @property
    def step(self) -> float:
        """Length of the shortest step, in radii: the diagonal of the cube over `config.march_steps`."""
        return 2 * math.sqrt(3) / self.config.march_steps

    @property
    def steps_per_ray(self) -> int:
        """Most steps that a ray takes."""
        return len(self.table) if self._contracted else self.config.march_steps

    @property
    def side(self) -> float:
        """Length of the unit cube's side in (contracted) radii."""
        return 2 * (1 + SHELL) if self._contracted else 2.0

    def to_unit(self, points: Tensor) -> Tensor:
        """World points [N, 3] in the unit cube; outside of [0, 1] if the space is a box and they are outside it."""
        return self.to_local(points) / self.side + 0.5

    def to_local(self, points: Tensor) -> Tensor:
        """World points [N, 3] relative to the centre, in (contracted) radii."""
        local = (points - self.center) / self.radius
        return contract(local, "inf", SHELL) if self._contracted else local

    def to_world(self, unit: Tensor) -> Tensor:
        """The inverse of `to_unit`, [N, 3]."""
        local = (unit - 0.5) * self.side
        if self._contracted:
            local = uncontract(local, "inf", SHELL)
        return local * self.radius + self.center

    def shrinkage(self, unit: Tensor) -> Tensor:
        """[N] how much shorter a length along the radius is in contracted space than in the world, at points [N, 3] of
        the unit cube: 1 inside, and 1/n^2 at n radii from the centre."""
        if not self._contracted:
            return unit.new_ones(len(unit))
        measure = (unit - 0.5).abs().amax(-1) * self.side
        return ((1 + SHELL - measure) / SHELL).clamp(1 / FARTHEST, 1).square()

    def step_at(self, unit: Tensor) -> Tensor:
        """[N] length of a step at points [N, 3] of the unit cube, in radii of contracted space, for a camera near the
        centre."""
        if not self._contracted:
            return unit.new_full((len(unit),), self.step)
        shrinkage = self.shrinkage(unit)
        return (self.config.cone * shrinkage.rsqrt()).clamp_min(self.step) * shrinkage

    def sample(self, rays: Rays, occupied: Tensor | None, jitter: bool) -> Samples:
        """Samples in the occupied cells [G, G, G] along rays; at random within their steps with `jitter`."""
        count, like = len(rays.origins), self.center
        offset = rand(count, like=like) if jitter else like.new_full((count,), 0.5)
        if self._contracted:
            return self._sample_contracted(rays, occupied, offset)
        low, high = self.center - self.radius, self.center + self.radius
        step = self.step * self._radius
        return box_steps(rays, low, high, step, near=self._near, offset=offset, occupancy=occupied)

    def _sample_contracted(self, rays: Rays, occupied: Tensor | None, offset: Tensor) -> Samples:
        """Steps grow with the distance from the camera; a ray's whole table is shifted by up to its first step and
        stretched by up to one of the growing ones."""
        origins, directions = (rays.origins - self.center) / self.radius, rays.directions / self.radius
        stretch = 1 + self.config.cone * offset
        stride = stretch / directions.norm(dim=-1)
        counts = torch.full((len(origins),), len(self.table) - 1, dtype=torch.int64, device=origins.device)
        corner = self.center.new_full((3,), 1 + SHELL)
        start = self.near + offset * self.step / directions.norm(dim=-1)
        t, ray, steps, offsets = march_occupancy(
            origins, directions, start, stride, counts, self.table[:-1].contiguous(), occupied, -corner, corner,
            lookup="cell", contraction="inf", shell=SHELL,
        )  # fmt: skip
        widths = (self.table[1:] - self.table[:-1])[steps] * stretch[ray] * self.radius
        return Samples(rays, t, widths, ray, offsets, steps)

    def described(self) -> str:
        """One line."""
        center = ", ".join(f"{value:.4g}" for value in self.center.tolist())
        if self._contracted:
            return f"contracted outside of {2 * self._radius:.4g} wide about ({center})"
        return f"a box {2 * self._radius:.4g} wide about ({center})"

    def warn_of_misses(self, rays: Rays) -> None:
        """Warn when hardly a ray meets the box."""
        if self._contracted:
            return
        low, high = self.center - self.radius, self.center + self.radius
        enter, leave = ray_box(rays.origins, rays.directions, low, high, self._near, math.inf)
        size = 2 * self._radius
        remedy = f"try --box-scale 2 (the box's sides are {size:.3g} long now), or --space contracted"
        warn_of_misses(leave > enter, "the box of the scene", remedy)


def choose_space(config: Config, geometry: SceneGeometry) -> Space:
    """A box where the images show an object alone or the files state its bounds; contracted otherwise."""
    kind = config.space
    if kind == "auto":
        kind = "box" if geometry.cut_out or geometry.bounds is not None else "contracted"
    near, _ = depth_range(geometry)
    if kind == "box":
        center, radius = enclosing_cube(geometry)
        return Space(center, radius * config.box_scale, near / 2, False, config)
    center, radius = _surroundings(geometry)
    return Space(center, radius * config.box_scale, near / 2, True, config)


def enclosing_cube(geometry: SceneGeometry) -> tuple[Tensor, float]:
    """Centre and half side of a cube: around `known_box`; else as wide as what the cameras see about the point that
    they look at."""
    box = known_box(geometry)
    if box is None:
        center, distance = focus(geometry)
        cameras = geometry.cameras.to("cpu")
        half = (cameras.sizes / 2 / torch.stack([cameras.Ks[:, 0, 0], cameras.Ks[:, 1, 1]], -1)).amax()
        return center, float(MARGIN * half * distance)
    low, high = box
    return (low + high) / 2, max(float((high - low).max()) / 2, 1e-6)


def known_box(geometry: SceneGeometry) -> Tensor | None:
    """[2, 3] the stated bounds; else a box around the points, without outliers; None where there are neither."""
    if geometry.bounds is not None:
        return geometry.bounds.float().cpu()
    if geometry.points is None or not len(geometry.points):
        return None
    ranked = geometry.points.float().cpu().sort(dim=0).values
    outer = int(OUTLIERS * (len(ranked) - 1))
    low, high = ranked[outer], ranked[len(ranked) - 1 - outer]
    margin = (MARGIN - 1) * (high - low)
    return torch.stack([low - margin, high + margin])


def _surroundings(geometry: SceneGeometry) -> tuple[Tensor, float]:
    """Centre and half side of what is worth the most detail: everything up to the cameras, about what they look at; if
    they look outwards, what most points are in, or `OUTWARDS` times as far as the cameras go."""
    center, away = focus(geometry)
    if focus_distances(geometry) is not None:
        radius = float((geometry.cameras.to("cpu").centers - center).abs().amax())
    elif geometry.points is not None and len(geometry.points):
        far = (geometry.points.float().cpu() - center).abs().amax(-1).sort().values
        radius = float(far[int(MOST * (len(far) - 1))])
    else:
        radius = OUTWARDS * away
    return center, max(radius, 1e-6)


def _distances(step: float, cone: float) -> Tensor:
    """[K] distances from the camera in radii: steps of one length, then growing ones, `cone` times the distance."""
    distances = [0.0]
    while distances[-1] < FARTHEST:
        distances.append(distances[-1] + max(step, cone * distances[-1]))
    return torch.tensor(distances)
