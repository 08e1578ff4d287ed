"""Camera paths for videos, made from the cameras that took the photographs.

Every path is closed: its last frame is followed by its first. Poses are camera-to-world [F, 4, 4] float64 in OpenCV
axes (x right, y down, z forward). Symbols: C given cameras, F frames, K keyframes.
"""

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.linalg import cross, eigh, solve, vecdot

from nfc_splat.cameras import Cameras

PathKind = Literal["orbit", "interpolate", "spiral", "still"]
PATHS = get_args(PathKind)

_FRAMES_PER_KEY = 15
_FEWEST_KEYS = 8  # with fewer, a curve around an object cuts through it
_SPREAD_OUT = 0.05
_WIDEST_GAP = math.radians(60)


def camera_path(kind: PathKind, cameras: Cameras, frames: int, width: int, height: int) -> Cameras:
    """`frames` pinhole cameras along a closed path that suits the given ones.

    Args:
        kind: "orbit" circles the point the cameras look at, at their median distance and height; "interpolate" is a
            smooth curve through a selection of the cameras; "spiral" winds around the middle camera; "still" stays at
            the first one, while time passes.
        cameras: C >= 1 cameras.
        frames: F >= 1.
        width, height: of the new images. The vertical field of view is the cameras' median.

    Returns:
        F cameras; with times from 0 to 1 when the given ones have times.
    """
    make = {"orbit": orbit, "interpolate": interpolate, "spiral": spiral, "still": still}[kind]
    poses = make(camera_to_world(cameras), frames)
    fy = float((cameras.Ks[:, 1, 1].double() / cameras.sizes[:, 1]).median()) * height
    K = torch.tensor([[fy, 0, width / 2], [0, fy, height / 2], [0, 0, 1]], dtype=cameras.Ks.dtype)
    times = None if cameras.times is None else torch.linspace(0, 1, frames, dtype=cameras.times.dtype)
    path = Cameras.pinhole(inverse(poses).to(cameras.viewmats.dtype), K, width, height, times=times)
    return replace(path, near=cameras.near, far=cameras.far)


def camera_to_world(cameras: Cameras) -> Tensor:
    """[C, 4, 4] float64 on the CPU."""
    return inverse(cameras.viewmats.detach().double().cpu())


def inverse(poses: Tensor) -> Tensor:
    """The inverse of rigid transforms [..., 4, 4], without solving for it."""
    rotation = poses[..., :3, :3].transpose(-1, -2)
    inverse = torch.eye(4, dtype=poses.dtype).expand(poses.shape).clone()
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ poses[..., :3, 3:])[..., 0]
    return inverse


def focus_point(poses: Tensor) -> Tensor:
    """The point closest to all optical axes, [3].

    Least squares over the lines; the point one typical distance ahead of the mean camera pulls a little, so that
    parallel axes have an answer too.
    """
    centers, axes = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3, dtype=poses.dtype) - axes[:, :, None] * axes[:, None, :]
    middle, spread = centers.mean(0), _spread(centers)
    ahead = middle + spread * _unit(axes.mean(0), axes[0])
    pull = 1e-6 * len(poses)
    matrix = across.sum(0) + pull * torch.eye(3, dtype=poses.dtype)
    return solve(matrix, (across @ centers[:, :, None]).sum(0)[:, 0] + pull * ahead)


def up_direction(poses: Tensor) -> Tensor:
    """The world's up, [3].

    Cameras held upright have horizontal right axes, so up is orthogonal to all of them, on the side of the cameras' own
    up. Cameras held on their side have horizontal down axes instead; they look down rather than up, which tells up from
    down. Where neither leaves one direction, up is the mean of the cameras' own.
    """
    own = _unit(-poses[:, :3, 1].mean(0), -poses[0, :3, 1])
    (flat, spread, normal), (flat_rolled, spread_rolled, normal_rolled) = (_plane(poses[:, :3, i]) for i in (0, 1))
    if spread >= _SPREAD_OUT and (flat <= 4 * flat_rolled or spread_rolled < _SPREAD_OUT):
        return normal if normal @ own >= 0 else -normal
    if spread_rolled >= _SPREAD_OUT:
        return normal_rolled if poses[:, :3, 2].mean(0) @ normal_rolled <= 0 else -normal_rolled
    return own


def _plane(axes: Tensor) -> tuple[float, float, Tensor]:
    """How thick and how wide a bundle of unit vectors [C, 3] is around its best plane, and that plane's normal [3]."""
    values, vectors = eigh(axes.transpose(0, 1) @ axes / len(axes))
    return float(values[0]), float(values[1]), vectors[:, 0]


def look_at(centers: Tensor, targets: Tensor, up: Tensor) -> Tensor:
    """Poses [F, 4, 4] of cameras at `centers` [F, 3] that look at `targets` [F, 3], with `up` [3] upwards."""
    forward = _unit(targets - centers, torch.zeros_like(centers))
    right = cross(forward, up.expand_as(forward))
    # Looking straight along up leaves right open: any horizontal direction will do.
    spare = cross(up, torch.eye(3, dtype=up.dtype)[up.abs().argmin()])
    right = _unit(right, spare.expand_as(right))
    poses = torch.eye(4, dtype=centers.dtype).repeat(len(centers), 1, 1)
    poses[:, :3, :3] = torch.stack([right, cross(forward, right), forward], -1)
    poses[:, :3, 3] = centers
    return poses


def orbit(poses: Tensor, frames: int) -> Tensor:
    """Circle the focus point, or, where the cameras stand inside and look out, look out from their ring.

    Where the cameras leave a gap (wider than 60 degrees and than twice their mean spacing), the path swings to and fro
    over the part they saw.
    """
    focus, up = focus_point(poses), up_direction(poses)
    centers, axes = poses[:, :3, 3], poses[:, :3, 2]
    outward = float(vecdot(axes, focus - centers).median()) < 0
    offsets = centers - focus
    heights = offsets @ up
    east = _unit(offsets[0] - heights[0] * up, cross(up, torch.eye(3, dtype=up.dtype)[up.abs().argmin()]))
    north = cross(up, east)
    radii = (offsets - heights[:, None] * up).norm(dim=-1)
    radius = radii.median().clamp_min(1e-6)
    # A camera right above the focus says nothing about the sides that were photographed.
    beside = offsets[radii >= 0.5 * radius] if bool((radii > 0).any()) else offsets
    angles = _sweep(torch.atan2(beside @ north, beside @ east), frames)
    ring = radius * (angles.cos()[:, None] * east + angles.sin()[:, None] * north)
    ring = focus + ring + heights.median() * up
    targets = 2 * ring - focus - heights.median() * up if outward else focus.expand_as(ring)
    return look_at(ring, targets, up)


def _sweep(azimuths: Tensor, frames: int) -> Tensor:
    """Angles [F] of a full turn, or of a swing over the covered arc when the largest gap is wide."""
    phase = 2 * math.pi * torch.arange(frames, dtype=azimuths.dtype) / frames
    ordered = azimuths.sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = int(gaps.argmax())
    if gaps[widest] <= max(_WIDEST_GAP, 4 * math.pi / len(ordered)):
        return azimuths[0] + phase
    start, arc = ordered[(widest + 1) % len(ordered)], 2 * math.pi - gaps[widest]
    return start + 0.5 * arc * (1 - phase.cos())


def spiral(poses: Tensor, frames: int) -> Tensor:
    """Wind twice around the camera nearest to the middle, looking at one point ahead; for forward-facing captures.

    As wide as the cameras stand, but never so wide or so far forward that the point ahead would leave the picture.
    """
    centers = poses[:, :3, 3]
    middle = poses[(centers - centers.mean(0)).norm(dim=-1).argmin()]
    forward = middle[:3, 2]
    focus = focus_point(poses)
    distance = max(float((focus - middle[:3, 3]) @ forward), _spread(centers))
    local = (centers - middle[:3, 3]) @ middle[:3, :3]
    widest = distance * torch.tensor([0.5, 0.5, 0.25], dtype=poses.dtype)
    radii = torch.quantile(local.abs(), 0.8, dim=0).clamp_min(0.02 * distance).minimum(widest)
    phase = 2 * math.pi * torch.arange(frames, dtype=poses.dtype) / frames
    winding = torch.stack([(2 * phase).cos(), (2 * phase).sin(), 0.5 * phase.sin()], -1)
    path = middle[:3, 3] + (winding * radii) @ middle[:3, :3].transpose(0, 1)
    return look_at(path, (middle[:3, 3] + distance * forward).expand_as(path), -middle[:3, 1])


def still(poses: Tensor, frames: int) -> Tensor:
    """The first camera, in every frame."""
    return poses[:1].repeat(frames, 1, 1)


def interpolate(poses: Tensor, frames: int) -> Tensor:
    """A smooth closed curve through well-spread cameras along a short tour: one per 15 frames, and eight at least.

    Positions follow a cubic Hermite spline whose knots are as far apart as the cameras; orientations follow the same
    spline on unit quaternions.
    """
    scale = _spread(poses[:, :3, 3])
    chosen = poses[_keyframes(poses, scale, max(_FEWEST_KEYS, round(frames / _FRAMES_PER_KEY)))]
    chosen = chosen[_tour(_distances(chosen, scale))]
    if len(chosen) == 1:
        return chosen.repeat(frames, 1, 1)
    turns = _same_side(quaternions(chosen[:, :3, :3]))
    lengths = _distances(chosen, scale).diagonal(1)
    lengths = torch.cat([lengths, _distances(chosen[[-1, 0]], scale)[0, 1:]])
    knots = torch.cat([torch.zeros(1, dtype=poses.dtype), lengths.clamp_min(1e-9).cumsum(0)])
    at = knots[-1] * torch.arange(frames, dtype=poses.dtype) / frames
    # The way back to the first key must not turn the long way round: q and -q are the same orientation.
    back = 1.0 if turns[-1] @ turns[0] >= 0 else -1.0
    path = torch.eye(4, dtype=poses.dtype).repeat(frames, 1, 1)
    path[:, :3, 3] = _closed_spline(chosen[:, :3, 3], knots, at, 1.0)
    path[:, :3, :3] = _rotations(_closed_spline(turns, knots, at, back))
    return path


def _keyframes(poses: Tensor, scale: float, count: int) -> Tensor:
    """Indices of at most `count` cameras, each the farthest from those before it."""
    distances = _distances(poses, scale)
    chosen = [0]
    nearest = distances[0].clone()
    while len(chosen) < min(count, len(poses)) and nearest.max() > 1e-6:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    return torch.tensor(chosen)


def _tour(distances: Tensor) -> Tensor:
    """A short closed tour [K] of all points: nearest neighbour first, then uncrossed (2-opt)."""
    count = len(distances)
    tour, left = [0], set(range(1, count))
    while left:
        tour.append(min(left, key=lambda i: float(distances[tour[-1], i])))
        left.remove(tour[-1])
    length = distances.tolist()
    improved = True
    while improved:
        improved = False
        for i in range(1, count - 1):
            for j in range(i + 1, count):
                a, b, c, d = tour[i - 1], tour[i], tour[j], tour[(j + 1) % count]
                if length[a][c] + length[b][d] < length[a][b] + length[c][d] - 1e-12:
                    tour[i : j + 1] = tour[i : j + 1][::-1]
                    improved = True
    return torch.tensor(tour)


def _distances(poses: Tensor, scale: float) -> Tensor:
    """[C, C] how far apart cameras are: distance in units of the rig's size, plus half the angle between their axes."""
    positions = torch.cdist(poses[:, :3, 3], poses[:, :3, 3]) / scale
    axes = poses[:, :3, 2]
    return positions + 0.5 * (axes @ axes.transpose(0, 1)).clamp(-1, 1).acos()


def _closed_spline(values: Tensor, knots: Tensor, at: Tensor, back: float) -> Tensor:
    """Cubic Hermite spline through `values` [K, D] at `knots` [K+1], closed, evaluated at `at` [F].

    Tangents are the mean of the neighbouring slopes weighted as by Bessel (a parabola through three points). `back` is
    the sign with which the values repeat.
    """
    count = len(values)
    ends = torch.cat([values, back * values[:1]])
    steps = knots[1:] - knots[:-1]
    slopes = (ends[1:] - ends[:-1]) / steps[:, None]
    before, step_before = slopes.roll(1, 0), steps.roll(1)
    before = torch.cat([back * before[:1], before[1:]])
    tangents = (step_before[:, None] * slopes + steps[:, None] * before) / (steps + step_before)[:, None]
    tangents = torch.cat([tangents, back * tangents[:1]])
    index = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, count - 1)
    step = steps[index][:, None]
    u = ((at - knots[index]) / steps[index])[:, None]
    start, end = ends[index], ends[index + 1]
    hermite = (2 * u**3 - 3 * u**2 + 1) * start + (3 * u**2 - 2 * u**3) * end
    return hermite + step * ((u**3 - 2 * u**2 + u) * tangents[index] + (u**3 - u**2) * tangents[index + 1])


def quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions wxyz [K, 4] of rotation matrices, by the largest eigenvector of Bar-Itzhack's matrix."""
    r = rotations
    rows = [
        torch.stack([r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2], r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0],
                     r[:, 1, 0] - r[:, 0, 1]], -1),
        torch.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 0] - r[:, 1, 1] - r[:, 2, 2], r[:, 0, 1] + r[:, 1, 0],
                     r[:, 0, 2] + r[:, 2, 0]], -1),
        torch.stack([r[:, 0, 2] - r[:, 2, 0], r[:, 0, 1] + r[:, 1, 0], r[:, 1, 1] - r[:, 0, 0] - r[:, 2, 2],
                     r[:, 1, 2] + r[:, 2, 1]], -1),
        torch.stack([r[:, 1, 0] - r[:, 0, 1], r[:, 0, 2] + r[:, 2, 0], r[:, 1, 2] + r[:, 2, 1],
                     r[:, 2, 2] - r[:, 0, 0] - r[:, 1, 1]], -1),
    ]  # fmt: skip
    return eigh(torch.stack(rows, -2)).eigenvectors[..., -1]


def _same_side(quaternions: Tensor) -> Tensor:
    """Flip signs so that neighbours have a positive product: the shorter way between orientations."""
    aligned = [quaternions[0]]
    for quaternion in quaternions[1:]:
        aligned.append(quaternion if quaternion @ aligned[-1] >= 0 else -quaternion)
    return torch.stack(aligned)


def _rotations(quaternions: Tensor) -> Tensor:
    """Rotation matrices [F, 3, 3] of quaternions wxyz, normalised here."""
    w, x, y, z = _unit(quaternions, torch.zeros_like(quaternions)).unbind(-1)
    return torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )


def _spread(centers: Tensor) -> float:
    """The size of a rig: the largest distance from its middle, 1 for a single place."""
    size = float((centers - centers.mean(0)).norm(dim=-1).max())
    return size if size > 1e-9 else 1.0


def _unit(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """`vectors` [..., 3] at unit length; the direction of `otherwise` where they vanish."""
    length = vectors.norm(dim=-1, keepdim=True)
    spare = otherwise / otherwise.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    return torch.where(length > 1e-9, vectors / length.clamp_min(1e-300), spare)
