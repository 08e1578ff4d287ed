"""Where Gaussians start: the scene's own points, or random ones where the cameras look.

Symbols: N points, C cameras, B blocks of S points, k neighbours. Positions are in the scene's frame and units.
"""

import logging
import math

import torch
from torch import Tensor

from nfc_splat.cameras import Cameras
from nfc_splat.fields.recipe import SceneGeometry

BLOCK = 64  # most points in a leaf of the neighbour search
CHUNK = 64  # leaves handled at once: temporaries of a few megabytes, which the allocator reuses, are much faster
CANDIDATES = 12  # tried per random point wanted
HULL_CAMERAS = 48  # that vote on where the scene is
SHARED = 0.8  # share of the cameras that see the most seen place, from which a capture counts as looking inwards

log = logging.getLogger("nfc_splat")


def initial_points(geometry: SceneGeometry, count: int, limit: int, cube: float = 0.0) -> tuple[Tensor, Tensor]:
    """Positions and colours to start from.

    Args:
        geometry: the scene. Its points are used if it has any.
        count: number of random points otherwise.
        limit: most Gaussians that the model may have. A scene with more than half as many points is thinned at random
            to that half, with a notice, so that there is room to add Gaussians where they are needed.
        cube: half the side of the cube around the origin that random points fill, where the cameras look at such a
            cube (3DGS and 4DGS: 1.3 for Blender's scenes); 0 for wherever the cameras look.

    Returns:
        points [N, 3] float32 and colors [N, 3] in [0, 1] (grey where the scene gives none).
    """
    points, colors = geometry.points, geometry.colors
    if points is None or len(points) == 0:
        count, where, colors = min(count, max(1, limit // 2)), "where the cameras look", None
        if cube and looks_at_cube(geometry.cameras, cube):
            points, where = (
                cube_points(cube, count).to(geometry.cameras.viewmats.device),
                f"within {cube:g} of the origin",
            )
        else:
            points = random_points(geometry.cameras, count)
        log.warning(
            "the scene has no points: starting from %d random ones %s, which costs some quality (about 1 dB on "
            "synthetic objects, more on real scenes); COLMAP points avoid this",
            len(points),
            where,
        )
    most = max(1, limit // 2)
    if len(points) > most:
        log.warning("the scene has %d points: starting from %d, half of --max-primitives", len(points), most)
        chosen = torch.randperm(len(points))[:most].sort().values.to(points.device)
        points, colors = points[chosen], None if colors is None else colors[chosen]
    return points.float(), torch.full_like(points, 0.5) if colors is None else colors.float()


def cube_points(half: float, count: int) -> Tensor:
    """Random points [count, 3] float32 of the cube from -`half` to `half`."""
    return half * (2 * torch.rand(count, 3) - 1)


def looks_at_cube(cameras: Cameras, half: float) -> bool:
    """Whether the cube from -`half` to `half` may be what the cameras were pointed at: they look at something from one
    to eight times `half` away (the published scenes': three times), and three in four see the origin."""
    near_enough = half <= viewing_distance(cameras) <= 8 * half
    return near_enough and 4 * int(_views(cameras, torch.zeros(1, 3, device=cameras.viewmats.device))) >= 3 * len(
        cameras
    )


def random_points(cameras: Cameras, count: int) -> Tensor:
    """Random points [count, 3] where many cameras look.

    Candidates are drawn along random pixels of random cameras, at log-uniform depths around the distance that the
    cameras suggest (that of the point their axes come closest to, or their spread when they look outwards), and each
    is asked how many cameras see it. In a capture that looks inwards some place is seen by nearly all cameras: the
    candidates kept are those that 3 in 4 of that number see (for the usual synthetic rig, the ball that fills the
    images). Otherwise the cameras look outwards or along a path, and whatever three cameras see is kept.
    """
    chosen = torch.linspace(0, len(cameras) - 1, min(HULL_CAMERAS, len(cameras))).round().long()
    cameras = cameras[chosen.to(cameras.viewmats.device)]
    candidates = _candidates(cameras, CANDIDATES * count)
    views = _views(cameras, candidates)
    most = int(views.max())
    enough = 0.75 * most if most >= SHARED * len(cameras) else min(3, most)
    kept = candidates[views >= enough]
    if len(kept) < count:
        kept = candidates[views.argsort(descending=True, stable=True)]
    return kept[:count].contiguous()


def viewing_distance(cameras: Cameras) -> float:
    """How far from the cameras the scene is likely to be, in world units, from their poses alone.

    The median depth of the point closest to all optical axes, if nine in ten cameras have it well in front of them; the
    extent of the cameras otherwise (capture from inside, or along a path).
    """
    centers, axes = cameras.centers.double(), cameras.viewmats[:, 2, :3].double()
    across = torch.eye(3, dtype=torch.float64, device=axes.device) - axes[:, :, None] * axes[:, None, :]  # [C, 3, 3]
    # Parallel axes meet nowhere: the system is singular, and its least-norm answer lies near the world's origin, so it
    # is solved relative to the cameras.
    middle = centers.mean(0)
    moments = (across @ (centers - middle)[:, :, None]).sum(0)
    focus = middle + (torch.linalg.pinv(across.sum(0), rtol=1e-6) @ moments)[:, 0]
    depths = ((focus - centers) * axes).sum(-1)
    spread = SceneGeometry(cameras, None, None).extent
    inwards = (depths > 0.1 * spread).double().mean() >= 0.9
    return float(depths.median()) if inwards else spread


def _candidates(cameras: Cameras, count: int) -> Tensor:
    """Points [count, 3] float32 on random pixels' rays, at log-uniform depths from 1/4 to 4 viewing distances."""
    device = cameras.viewmats.device
    camera = torch.randint(len(cameras), (count,)).to(device)
    places = (torch.rand(count, 2).to(device) * cameras.sizes[camera]).long()  # (column, row)
    rays = cameras.rays(torch.stack([camera, places[:, 1], places[:, 0]], dim=-1))
    depths = viewing_distance(cameras) * 4 ** (2 * torch.rand(count, 1).to(device) - 1)
    return (rays.origins + rays.directions * depths).float()


def _views(cameras: Cameras, points: Tensor) -> Tensor:
    """How many cameras have each point in their image, lens distortion aside: [N] int64."""
    views = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    projections = cameras.Ks.float() @ cameras.viewmats[:, :3].float()  # [C, 3, 4]
    along = points.T.contiguous()
    for projection, (width, height) in zip(projections, cameras.sizes.tolist(), strict=True):
        x, y, depth = projection[:, :3] @ along + projection[:, 3:]
        views += (x > 0) & (y > 0) & (x < width * depth) & (y < height * depth)
    return views


def neighbor_distance(points: Tensor, k: int = 3) -> Tensor:
    """Root mean square distance from each point to its `k` nearest others: [N].

    Exact, and about N log N for scattered points: points are cut at medians into blocks of at most `BLOCK`, and a point
    is compared with the blocks whose box is closer than its k-th neighbour within its own block. With fewer than k + 1
    points the mean is over those that exist; a lone point gets 0.
    """
    total = len(points)
    k = min(k, total - 1)
    if k <= 0:
        return points.new_zeros(total)
    slots = _median_blocks(points)  # [B, S]
    grouped = points[slots.clamp_max(total - 1)].masked_fill((slots >= total)[:, :, None], torch.inf)
    best = torch.cat([_within(block, k) for block in grouped.split(CHUNK)])  # [B, S, k]
    found = [_closer(grouped, best, rows) for rows in torch.arange(len(slots), device=points.device).split(CHUNK)]
    values = torch.cat([best.view(-1, k), *(value for value, _ in found)]).flatten()
    owners = torch.cat([torch.arange(slots.numel(), device=points.device), *(owner for _, owner in found)])
    nearest = _smallest(values, owners.repeat_interleave(k), k)  # [B * S, k]
    result = points.new_empty(slots.numel())
    result[slots.flatten()] = nearest.mean(-1).sqrt()
    return result[:total]


def _median_blocks(points: Tensor) -> Tensor:
    """Indices [B, S] of points [N, 3], cut at the median of the widest axis until S <= BLOCK; B is a power of two.

    Indices from N upwards fill the blocks up and stand for nothing.
    """
    total = len(points)
    levels = max(0, math.ceil(math.log2(total / BLOCK)))
    slots = torch.arange(-(-total // 2**levels) * 2**levels, device=points.device)[None]
    for _ in range(levels):
        grouped = points[slots.clamp_max(total - 1)]
        axis = (grouped.amax(1) - grouped.amin(1)).argmax(-1)
        along = grouped.gather(2, axis[:, None, None].expand(-1, slots.shape[1], 1))[:, :, 0]
        slots = slots.gather(1, along.argsort(dim=1)).view(2 * len(slots), -1)
    return slots


def _within(grouped: Tensor, k: int) -> Tensor:
    """Squared distances [B, S, k] from each point to its nearest others in its own block of `grouped` [B, S, 3]."""
    squared = (grouped[:, :, None] - grouped[:, None]).square_().sum(-1).nan_to_num_(nan=torch.inf)  # [B, S, S]
    squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return squared.topk(k, largest=False).values


def _closer(grouped: Tensor, best: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [M, k] from points of the blocks `rows` to other blocks' nearest, and those points' slots [M].

    `grouped` [B, S, 3] holds infinity where there is no point; `best` [B, S, k] is what each block knows of itself.
    """
    size, k = best.shape[1:]
    real = grouped.isfinite()
    low = grouped.amin(1)
    high = grouped.masked_fill(~real, -torch.inf).amax(1)  # [B, 3]
    reach = best[..., -1].masked_fill(~real[..., 0], -1)  # [B, S]
    gaps = (low[None] - high[rows, None]).clamp_min(0) + (low[rows, None] - high[None]).clamp_min(0)
    wanted = gaps.square_().sum(-1) < reach[rows].amax(1)[:, None]
    wanted[torch.arange(len(rows), device=rows.device), rows] = False
    own, other = wanted.nonzero(as_tuple=True)
    own = rows[own]
    outside = (low[other, None] - grouped[own]).clamp_min(0) + (grouped[own] - high[other, None]).clamp_min(0)
    pair, member = (outside.square_().sum(-1) < reach[own]).nonzero(as_tuple=True)
    own, other = own[pair], other[pair]
    values = [
        (grouped[o, m, None] - grouped[b]).square_().sum(-1).topk(k, largest=False).values
        for o, m, b in zip(own.split(8192), member.split(8192), other.split(8192), strict=True)
    ]
    return torch.cat(values), own * size + member


def _smallest(values: Tensor, owners: Tensor, k: int) -> Tensor:
    """The k smallest `values` [V] of each owner: [number of owners, k]. Every owner in 0..max has at least k."""
    order = values.argsort()
    order = order[owners[order].argsort(stable=True)]
    counts = owners.bincount()
    starts = counts.cumsum(0) - counts
    return values[order][starts[:, None] + torch.arange(k, device=values.device)]
