"""Where to look along rays: samplers turn rays into `Samples`.

Symbols: R rays, S samples per ray where it is the same for all, M samples in all. `near` and `far` are distances along
a ray in units of its direction, floats or [R]; a ray with far <= near gets no samples or ones of zero width.
"""

import math

import torch
from torch import Tensor

from nfc_splat.cameras import Rays
from nfc_splat.rendering.occupancy import Lookup, march_occupancy, ray_box
from nfc_splat.rendering.samples import Samples
from nfc_splat.rendering.sharing import rand

LAST_WIDTH = 1e10  # world length that NeRF gives to a ray's last sample


def stratified(
    rays: Rays,
    near: float | Tensor,  # [R]
    far: float | Tensor,  # [R]
    count: int,
    *,
    jitter: bool,
    in_disparity: bool = False,
) -> Samples:
    """`count` samples between near and far, one drawn from each of as many bins with `jitter` (NeRF, Eq. 2).

    The bins' borders are the midpoints of evenly spaced distances, near and far included, so that without `jitter` the
    samples are these distances themselves. `in_disparity` spaces them evenly in 1/t.
    """
    share = torch.linspace(0, 1, count, device=rays.origins.device, dtype=rays.origins.dtype)
    near, far = (_per_ray(value, rays)[:, None] for value in (near, far))
    t = 1 / ((1 - share) / near + share / far) if in_disparity else near + (far - near) * share
    if jitter:
        middle = 0.5 * (t[:, 1:] + t[:, :-1])
        low, high = torch.cat([t[:, :1], middle], 1), torch.cat([middle, t[:, -1:]], 1)
        t = low + (high - low) * rand(*t.shape, like=t)
    return Samples.dense(rays, t, widths_between(rays, t))


def widths_between(rays: Rays, t: Tensor) -> Tensor:
    """[R, S] world length from each sample [R, S] to the next one; the last reaches to `LAST_WIDTH`, as in NeRF."""
    length = rays.directions.norm(dim=-1, keepdim=True)
    return torch.cat([(t[:, 1:] - t[:, :-1]) * length, LAST_WIDTH * length], 1)


def importance(samples: Samples, weights: Tensor, count: int, *, jitter: bool) -> Samples:
    """NeRF's hierarchical sampling (section 5.2): `count` more samples per ray where `weights` [M] are large.

    `samples` must have the same number S >= 3 per ray. The new distances follow the piecewise constant density of the
    inner weights over the midpoints; the answer holds old and new ones, sorted, S + count per ray, without a gradient.
    """
    return merged(samples, more_where_seen(samples, weights, count, jitter=jitter))[0]


def more_where_seen(samples: Samples, weights: Tensor, count: int, *, jitter: bool) -> Samples:
    """The new samples of `importance` alone, `count` per ray; not sorted with `jitter`, and of no width."""
    t = _by_ray(samples.t, samples).detach()
    middle = 0.5 * (t[:, 1:] + t[:, :-1])
    new = sample_pdf(middle, weights.detach().view_as(t)[:, 1:-1], count, jitter=jitter)
    return Samples.dense(samples.rays, new, torch.zeros_like(new))


def merged(samples: Samples, others: Samples) -> tuple[Samples, Tensor]:
    """Two lists of samples of the same rays as one, sorted along them, and which rows of the two lists put one after
    the other they are: [M] int64. Both must have the same number of samples on every ray."""
    rays, parts = samples.rays, (samples, others)
    lists = [_by_ray(part.t, part).detach() for part in parts]
    t, order = torch.cat(lists, 1).sort(dim=1)
    numbers = torch.arange(len(samples) + len(others), device=t.device)
    split = numbers.split([len(samples), len(others)])
    rows = torch.cat([_by_ray(row, part) for row, part in zip(split, parts, strict=True)], 1)
    return Samples.dense(rays, t, widths_between(rays, t)), rows.gather(1, order).view(-1)


def _by_ray(values: Tensor, samples: Samples) -> Tensor:
    """Values [M] of samples, of which every ray has the same number, as [R, M / R]; R may be 0."""
    count = len(samples.rays.origins)
    return values.view(count, len(samples) // max(count, 1))


def sample_pdf(edges: Tensor, weights: Tensor, count: int, *, jitter: bool) -> Tensor:
    """Draw from piecewise constant densities by inverting their cumulative sums.

    Args:
        edges: [R, B + 1] ascending borders of the bins.
        weights: [R, B] at least 0; 1e-5 is added to each, so that a row of zeros is uniform.
        count: how many, N.
        jitter: random positions in the cumulative sum; evenly spaced ones from 0 to 1 otherwise.

    Returns:
        [R, N], not sorted with `jitter`.
    """
    if jitter:
        u = rand(len(edges), count, like=edges)
    else:
        u = torch.linspace(0, 1, count, device=edges.device, dtype=edges.dtype).expand(len(edges), count)
    return invert_pdf(edges, weights, u)


def invert_pdf(edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Where the cumulative sums of `weights` + 1e-5 reach the shares `u`: [R, N], of [R, B + 1] edges, [R, B] weights
    and [R, N] shares in [0, 1]."""
    density = weights + 1e-5
    cumulative = (density / density.sum(1, keepdim=True)).cumsum(1)
    cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative], 1)
    above = torch.searchsorted(cumulative, u.contiguous(), right=True)
    last = edges.shape[1] - 1
    below, above = (above - 1).clamp(0, last), above.clamp(0, last)
    low, high = cumulative.gather(1, below), cumulative.gather(1, above)
    span = high - low
    share = (u - low) / torch.where(span < 1e-5, 1.0, span)
    start = edges.gather(1, below)
    return start + share * (edges.gather(1, above) - start)


def box_steps(
    rays: Rays,
    low: Tensor,  # [3] the box's corners in world space
    high: Tensor,  # [3]
    step: float,  # world length
    *,
    near: float = 0.0,
    far: float = math.inf,
    offset: float | Tensor = 0.5,  # [R]
    occupancy: Tensor | None = None,  # [X, Y, Z] bool
    lookup: Lookup = "cell",
) -> Samples:
    """Samples `step` apart where rays cross a box, in occupied space only if an `occupancy` of the box is given.

    The first one lies `offset` steps behind the point of entry: a number in [0, 1], or one per ray to jitter them.
    `lookup` says how a position finds its entry of `occupancy`: see `march_occupancy`.
    """
    enter, leave = ray_box(rays.origins, rays.directions, low, high, near, far)
    stride = step / rays.directions.norm(dim=-1)
    counts = ((leave - enter) / stride).ceil().clamp_min(0).nan_to_num(0).to(torch.int64)
    start = enter + offset * stride
    t, ray, steps, offsets = march_occupancy(
        rays.origins, rays.directions, start, stride, counts, None, occupancy, low, high, lookup=lookup
    )
    return Samples(rays, t, torch.full_like(t, step), ray, offsets, steps)


def _per_ray(value: float | Tensor, rays: Rays) -> Tensor:
    return torch.as_tensor(value, dtype=rays.origins.dtype, device=rays.origins.device).expand(len(rays.origins))
