"""The training of DVGO's contracted model a second time: plain torch in float64, on all places of all rays, in the
order of the released code. Slow, and shares nothing with `nfc_splat.fields.dvgo` but the settings.

Symbols: N rays, S places that all rays look at, C channels, X, Y, Z nodes of a grid. Grids are [1, C, X, Y, Z].
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nfc_splat.fields.dvgo import Config

SHELL, THINNING, FARTHEST, STOP = 0.2, 0.95, 128.0, 1e-3
HALF = 1 + SHELL  # half a side of the cube
# By step in units of grow_every: what part of the threshold counts from then on.
SHARES = {0: 1 / 20, 1.5: 1 / 10, 2.5: 1 / 4, 3.5: 1 / 3, 4.5: 1 / 2, 5.5: 1.0, 6.5: 1.0}


@dataclass
class Drawn:
    """What a batch of rays sees.

    Attributes:
        color: [N, 3].
        left: [N] of a ray at its end.
        weights: [N, S], 0 where no colour was asked for.
        colors: [N, S, 3], 0 there.
        shown: [N, S] where one was asked for.
        table: [S] distances from the camera in radii.
    """

    color: Tensor
    left: Tensor
    weights: Tensor
    colors: Tensor
    shown: Tensor
    table: Tensor


class Reference:
    """Grids, mask, network and optimiser of an unbounded scene, as settled `config` says.

    Attributes:
        density, features, layers: leaves to be set before each step; layers are [weight, bias, weight, bias, ...].
        mask: [X, Y, Z].
    """

    def __init__(self, config: Config, center: Tensor, radius: float) -> None:
        self.config, self.center, self.radius = config, center.double(), radius
        self.voxels = config.voxels // 2**config.growths
        size = self.size()
        self.mask = torch.ones(size, dtype=torch.bool)
        self.density = torch.zeros(1, 1, *size, dtype=torch.float64)
        self.features = torch.zeros(1, config.color_channels, *size, dtype=torch.float64)
        self.layers: list[Tensor] = []
        self.act_shift = math.log(1 / (1 - config.alpha_init) - 1)
        self.threshold = SHARES[0] * config.alpha_threshold
        self.forget()

    def size(self) -> tuple[int, int, int]:
        """X, Y, Z for the current number of voxels."""
        side = 2 * HALF / self.voxels ** (1 / 3)
        return (int(2 * HALF / side + 1e-6),) * 3

    @property
    def ratio(self) -> float:
        """Side of a voxel in base voxels."""
        return (self.config.base_voxels / self.voxels) ** (1 / 3)

    def forget(self) -> None:
        """A new optimiser."""
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.passed = 0  # steps since

    def opacity(self, raw: Tensor, interval: float) -> Tensor:
        return 1 - (1 + (raw + self.act_shift).exp()) ** -interval

    def begin(self, step: int) -> None:
        """What happens before a step: pruning, doubling, the next threshold."""
        config = self.config
        if (step + config.mask_every // 2) % config.mask_every == 0:
            alpha = self.opacity(sampled(self.density, nodes(self.mask.shape))[:, 0], self.ratio)
            self.mask &= pooled(alpha.view(self.mask.shape)) > self.threshold
        growth, rest = divmod(step, config.grow_every)
        if rest == 0 and growth <= config.growths:
            self.voxels = config.voxels // 2 ** (config.growths - growth)
            size = self.size()
            self.density = F.interpolate(self.density, size=size, mode="trilinear", align_corners=True)
            self.features = F.interpolate(self.features, size=size, mode="trilinear", align_corners=True)
            alpha = pooled(self.opacity(self.density[0, 0], self.ratio))
            self.mask = looked_up(self.mask, nodes(size)).view(size) & (alpha > self.threshold)
            self.act_shift -= config.act_shift_decay
            self.forget()
        for key, share in SHARES.items():
            if step == round(key * config.grow_every):
                self.threshold = share * config.alpha_threshold

    def table(self) -> Tensor:
        """[S] distances from the camera in radii."""
        steps = int(2 / (2 * HALF) * len(self.mask) / self.config.stepsize) + 1
        inner = torch.linspace(0, 2, steps + 1, dtype=torch.float64)
        outer = 2 / torch.linspace(1, 1 / FARTHEST, steps + 1, dtype=torch.float64)
        return torch.cat([(edges[1:] + edges[:-1]) / 2 for edges in (inner, outer)])

    def places(self, origins: Tensor, views: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Contracted points [N, S, 3], and which [N, S] of them count: thinned, occupied ones."""
        points = ((origins - self.center) / self.radius)[:, None] + views[:, None] * table[:, None]
        order = 2 if self.config.contraction == "l2" else math.inf
        norm = torch.linalg.vector_norm(points, order, -1, keepdim=True)
        points = torch.where(norm <= 1, points, points / norm * (HALF - SHELL / norm))
        kept = norm[..., 0] <= 1
        least = THINNING * 2 * HALF / len(self.mask) * self.config.stepsize
        length = torch.zeros(len(points), dtype=torch.float64)
        for place, move in enumerate(points.diff(dim=1).norm(dim=-1).unbind(1), start=1):
            length = length + move
            far = length > least
            kept[:, place] |= far
            length = length * ~far
        return points, kept & looked_up(self.mask, points.reshape(-1, 3)).view(kept.shape)

    def draw(self, origins: Tensor, directions: Tensor, background: Tensor) -> Drawn:
        """Rays [N, 3] over `background` [N, 3]."""
        views = F.normalize(directions, dim=-1)
        table = self.table()
        points, kept = self.places(origins, views, table)
        raw = sampled(self.density, points.reshape(-1, 3)).view(kept.shape)
        alphas = self.opacity(raw, self.config.stepsize * self.ratio)
        alphas = torch.where(kept & (alphas > self.threshold), alphas, 0.0)
        after = (1 - alphas).cumprod(1)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
        alphas = torch.where(before < STOP, 0.0, alphas)  # the ray has ended
        weights, left = before * alphas, (1 - alphas).prod(1)
        shown = weights > self.threshold
        colors = torch.zeros(*shown.shape, 3, dtype=torch.float64)
        colors[shown] = self.colors(points[shown], views[:, None].expand_as(points)[shown])
        weights = torch.where(shown, weights, 0.0)
        color = (weights[..., None] * colors).sum(1) + left[:, None] * background
        return Drawn(color, left, weights, colors, shown, table)

    def colors(self, points: Tensor, views: Tensor) -> Tensor:
        """Colours [M, 3] of points in the cube, seen along unit `views`."""
        waves = (views[..., None] * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)).flatten(1)
        values = torch.cat([sampled(self.features, points), views, waves.sin(), waves.cos()], 1)
        for index in range(0, len(self.layers), 2):
            values = values if index == 0 else values.relu()
            values = values @ self.layers[index].T + self.layers[index + 1]
        if values.shape[1] == 3:
            return values.sigmoid()
        digits = 2.0 ** torch.arange(7, -1, -1, dtype=torch.float64) / 255
        return (values.sigmoid().view(-1, 3, 8) * digits).sum(-1)

    def losses(self, drawn: Drawn, target: Tensor) -> dict[str, Tensor]:
        """The weighted terms for targets [N, 3]."""
        config, count = self.config, len(target)
        left = drawn.left.clamp(1e-6, 1 - 1e-6)
        entropy = -(left * left.log() + (1 - left) * (1 - left).log()).mean()
        errors = (drawn.colors - target[:, None]).square().sum(-1)
        s, weights = 1 - 1 / (1 + drawn.table), drawn.weights
        pairs = weights[:, :, None] * weights[:, None] * (s[:, None] - s).abs()
        distortion = (pairs.sum() + weights.square().sum() / 3 / len(s)) / count
        return {
            "photometric": (drawn.color - target).square().mean(),
            "entropy": config.entropy * entropy,
            "rgbper": config.rgbper * (weights.detach() * errors).sum() / count,
            "distortion": config.distortion * distortion,
        }

    def variation(self, grid: Tensor, gradient: Tensor, weight: float, step: int) -> Tensor:
        """What total variation adds to a grid's gradient."""
        result = torch.zeros_like(grid)
        for axis in (2, 3, 4):
            pull = grid.diff(dim=axis).clamp(-1, 1)
            result.narrow(axis, 1, pull.shape[axis]).add_(pull)
            result.narrow(axis, 0, pull.shape[axis]).sub_(pull)
        scale = weight / self.config.rays * max(self.mask.shape) / 128 / 6
        return scale * result * (1.0 if step < self.config.tv_dense_until else gradient != 0)

    def move(self, name: str, gradient: Tensor, rate: float, rests: bool) -> Tensor:
        """What the optimiser adds to a parameter; with `rests`, nothing where the gradient is 0."""
        rate *= 0.1 ** (self.passed / self.config.lr_decay_steps)
        zeros = torch.zeros_like(gradient)
        m, v = self.moments.get(name, (zeros, zeros))
        moves = gradient != 0 if rests else torch.ones_like(gradient, dtype=torch.bool)
        m = torch.where(moves, 0.9 * m + 0.1 * gradient, m)
        v = torch.where(moves, 0.99 * v + 0.01 * gradient.square(), v)
        self.moments[name] = m, v
        steps = self.passed + 1
        rate *= math.sqrt(1 - 0.99**steps) / (1 - 0.9**steps)
        return torch.where(moves, -rate * m / (v.sqrt() + self.config.adam_eps), 0.0)


def nodes(size: tuple[int, int, int]) -> Tensor:
    """[X Y Z, 3] where the nodes of the cube lie."""
    axes = [torch.linspace(-HALF, HALF, count, dtype=torch.float64) for count in size]
    return torch.cartesian_prod(*axes)


def sampled(grid: Tensor, points: Tensor) -> Tensor:
    """[M, C] trilinear values at points [M, 3] of the cube."""
    places = (points / HALF).flip(-1).view(1, 1, 1, -1, 3)
    return F.grid_sample(grid, places, align_corners=True).reshape(grid.shape[1], -1).T


def pooled(alpha: Tensor) -> Tensor:
    """The largest of each node [X, Y, Z] and those around it."""
    return F.max_pool3d(alpha[None, None], 3, 1, 1)[0, 0]


def looked_up(mask: Tensor, points: Tensor) -> Tensor:
    """[M] what the nearest node says of points [M, 3]; False outside."""
    last = torch.tensor(mask.shape) - 1
    node = ((points + HALF) / (2 * HALF) * last + 0.5).floor().long()
    inside = ((node >= 0) & (node <= last)).all(-1)
    return mask[node.clamp_min(0).minimum(last).unbind(-1)] & inside
