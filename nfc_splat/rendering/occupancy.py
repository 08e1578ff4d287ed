"""Where rays may meet something: boxes, contracted space and grids of occupied entries.

Symbols: R rays, M samples of them together, X, Y, Z entries of an occupancy grid, K steps of a table of distances,
n the norm of a point, b the width of the shell that contraction maps the outside into.

Distances `t` are in units of a ray's direction. A box has corners `low` and `high`, [3] each. Nothing here but
`contract` and `uncontract` is differentiable.
"""

import importlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from nfc_splat.rendering.packed import Backend

Norm = Literal["l2", "inf"]
Lookup = Literal["node", "cell"]

MAX_CANDIDATES = 2**31  # per call: one bit of memory each
MAX_STEPS = 2**24  # per ray: float32 counts no further
MAX_SAMPLES = 2**26  # per call: 20 bytes of memory each

# Imported when first used: numba costs nothing until then.
_MODULES = {name: f"nfc_splat.rendering.kernels.march_{name}" for name in ("reference", "cpu")}


def contract(points: Tensor, norm: Norm = "l2", shell: float = 0.2) -> Tensor:
    """Map all of space into the ball (or cube, with "inf") of radius 1 + b, leaving the unit ball as it is.

    x if n <= 1, else x / n (1 + b - b / n): mip-NeRF 360, Eq. 10, with a shell of width b = `shell` in the place of 1.

    Args:
        points: [..., 3]. norm: how n is measured. shell: b > 0.
    """
    _check_contraction(norm, shell)
    inverse = 1 / _outer_norm(points, norm)
    return torch.where(is_inner(points, norm), points, points * (((1 + shell) - shell * inverse) * inverse))


def uncontract(points: Tensor, norm: Norm = "l2", shell: float = 0.2) -> Tensor:
    """The inverse of `contract`: n becomes b / (1 + b - n). Where n reaches 1 + b, space ends: a far point is given."""
    _check_contraction(norm, shell)
    length = _outer_norm(points, norm)
    room = ((1 + shell) - length).clamp_min(torch.finfo(points.dtype).eps)
    return torch.where(is_inner(points, norm), points, points * (shell / (room * length)))


def is_inner(points: Tensor, norm: Norm) -> Tensor:
    """[..., 1] whether points lie in the unit ball (cube), where n <= 1."""
    return _measure(points, norm) <= 1


def _outer_norm(points: Tensor, norm: Norm) -> Tensor:
    """[..., 1] n, or 1 for inner points, so that the origin has a gradient too."""
    measure = _measure(points, norm).clamp_min(1)
    return rounded_sqrt(measure) if norm == "l2" else measure


def rounded_sqrt(values: Tensor) -> Tensor:
    """The square root, correctly rounded to float32 (torch's may be off by a bit), so that every device agrees."""
    return values.double().sqrt().to(values.dtype)


def _measure(points: Tensor, norm: Norm) -> Tensor:
    """[..., 1] n, for "l2" its square."""
    if norm == "inf":
        return points.abs().amax(-1, keepdim=True)
    x, y, z = points.split(1, -1)
    return x * x + y * y + z * z


@torch.no_grad()
def ray_box(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    low: Tensor,  # [3]
    high: Tensor,  # [3]
    near: float | Tensor,  # [R]
    far: float | Tensor,  # [R]
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box (Kay and Kajiya's slabs), cut to [near, far].

    Returns:
        t_near [R] and t_far [R]; t_far < t_near where a ray misses the box, and where it is not finite. Components of a
        direction may be 0: the ray then lies between two sides of the box or misses it.
    """
    first, second = (low - origins) / directions, (high - origins) / directions
    inside = (origins >= low) & (origins <= high)
    parallel = directions == 0
    enter = torch.where(parallel, torch.where(inside, -torch.inf, torch.inf), torch.minimum(first, second)).amax(-1)
    leave = torch.where(parallel, torch.where(inside, torch.inf, -torch.inf), torch.maximum(first, second)).amin(-1)
    enter = torch.maximum(enter, torch.as_tensor(near, dtype=enter.dtype, device=enter.device))
    leave = torch.minimum(leave, torch.as_tensor(far, dtype=leave.dtype, device=leave.device))
    unusable = enter.isnan() | leave.isnan()
    return torch.where(unusable, torch.inf, enter), torch.where(unusable, -torch.inf, leave)


@torch.no_grad()
def march_occupancy(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    start: Tensor,  # [R]
    stride: Tensor,  # [R]
    counts: Tensor,  # [R]
    table: Tensor | None,  # [K]
    occupancy: Tensor | None,  # [X, Y, Z]
    low: Tensor,  # [3]
    high: Tensor,  # [3]
    *,
    lookup: Lookup,
    contraction: Norm | None = None,
    shell: float = 0.2,
    min_spacing: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The steps along rays that lie in a box, and in an occupied entry of it if there is an occupancy.

    Candidate k < counts[r] of ray r lies at t = start[r] + stride[r] * table[k], or stride[r] * k without a table, and
    its position is origin + t direction, contracted if that is asked for. Positions on the box's sides are inside.
    A ray that holds NaN has no samples.

    Args:
        counts: [R] int64, at most K.
        table: [K] ascending, shared by all rays.
        occupancy: [X, Y, Z] bool. With `lookup` "node", entries are nodes, the outermost on the box's sides, and the
            nearest one answers (halfway between two, the upper one). With "cell", the box is cut into X x Y x Z cells,
            and the one that the position lies in answers.
        contraction: contract positions before looking, with this norm.
        shell: b of `contract`.
        min_spacing: with a contraction, thin out the outer candidates: candidates with n <= 1 stay, an outer one only
            if the length of the contracted path since the one that stayed before it is larger than this. The first
            candidate stays if it is inner. Decided before box and occupancy are looked at (DVGO's contracted model).

    Returns:
        t [M], ray [M] int64, step [M] int64 (k), offsets [R + 1] int64: the samples of ray r are the rows
        `offsets[r]:offsets[r + 1]`, nearest first.

    Raises:
        ValueError: a shape, dtype or option does not fit, or there would be too many samples; the message says which.
    """
    _check(origins, directions, start, stride, counts, table, occupancy, low, high)
    if lookup not in get_args(Lookup):
        raise ValueError(f"lookup must be one of {', '.join(get_args(Lookup))}; got {lookup!r}")
    if contraction is not None:
        _check_contraction(contraction, shell)
    elif min_spacing > 0:
        raise ValueError("min_spacing is a distance in contracted space: give contraction too")
    counts = counts.clamp_min(0)
    check_size("candidates on one ray", int(counts.max()) if len(counts) else 0, MAX_STEPS)
    check_size("candidates", int(counts.sum()), MAX_CANDIDATES)
    scale = _scale(low, high, occupancy, lookup)
    return _kernel(origins, backend)(
        origins, directions, start, stride, counts, table, occupancy, torch.stack([low, high, scale]),
        nearest=lookup == "node", contraction=contraction, shell=shell, min_spacing=min_spacing, limit=MAX_SAMPLES,
    )  # fmt: skip


def _kernel(origins: Tensor, backend: Backend) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The `march` of the backend that serves these rays."""
    compiled = origins.device.type == "cpu" and origins.dtype == torch.float32
    if backend == "auto":
        backend = "cpu" if compiled else "reference"
    if backend not in _MODULES:
        raise ValueError(f"backend must be one of auto, {', '.join(_MODULES)}; got {backend!r}")
    if backend == "cpu" and not compiled:
        raise ValueError(f'backend "cpu" takes float32 in main memory; got {origins.dtype} on {origins.device}')
    return importlib.import_module(_MODULES[backend]).march


def check_size(what: str, count: int, limit: int) -> None:
    """Raise ValueError when a march of `count` somethings would take more memory than any use of it can mean."""
    if count > limit:
        raise ValueError(f"{count:,} {what} are more than {limit:,}: take longer steps or fewer rays")


def _scale(low: Tensor, high: Tensor, occupancy: Tensor | None, lookup: Lookup) -> Tensor:
    """[3] entries per length along each axis, for positions relative to `low`."""
    if occupancy is None:
        return torch.ones_like(low)
    size = torch.tensor(occupancy.shape, device=low.device) - int(lookup == "node")
    return (size.double() / (high.double() - low.double())).to(low.dtype)


def _check_contraction(norm: str, shell: float) -> None:
    if norm not in get_args(Norm):
        raise ValueError(f"the norm of a contraction must be one of {', '.join(get_args(Norm))}; got {norm!r}")
    if not 0 < shell < float("inf"):
        raise ValueError(f"the shell of a contraction must be positive; got {shell}")


def _check(origins, directions, start, stride, counts, table, occupancy, low, high) -> None:
    """Raise ValueError with the name of the first tensor whose shape, dtype or device does not fit."""
    rays = len(origins)
    shapes = {
        "origins": (origins, (rays, 3)),
        "directions": (directions, (rays, 3)),
        "start": (start, (rays,)),
        "stride": (stride, (rays,)),
        "low": (low, (3,)),
        "high": (high, (3,)),
    }
    if table is not None:
        shapes["table"] = (table, (table.numel(),))
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}; got {list(tensor.shape)}")
        if tensor.dtype != origins.dtype or not tensor.is_floating_point() or tensor.device != origins.device:
            expected = f"{origins.dtype} on {origins.device}, like origins"
            raise ValueError(f"{name} must be {expected}; got {tensor.dtype} on {tensor.device}")
    if tuple(counts.shape) != (rays,) or counts.dtype != torch.int64:
        raise ValueError(f"counts must be [{rays}] int64; got {list(counts.shape)} {counts.dtype}")
    if occupancy is not None and (occupancy.dim() != 3 or occupancy.dtype != torch.bool or not occupancy.numel()):
        raise ValueError(f"occupancy must be [X, Y, Z] bool; got {list(occupancy.shape)} {occupancy.dtype}")
    if occupancy is not None and occupancy.numel() >= 2**31:
        raise ValueError(f"occupancy must have fewer than 2^31 entries; got {list(occupancy.shape)}")
    if not bool((low < high).all()):
        raise ValueError(f"low must be below high on every axis; got {low.tolist()} and {high.tolist()}")
    if table is not None and rays and int(counts.max()) > len(table):
        raise ValueError(f"counts ask for {int(counts.max())} steps of a table of {len(table)}")
