"""The kernels of marched fields beside the same functions in plain torch, in turn in one process.

`python -m nfc_splat.eval speed --kernels` times one evaluation with its gradients, as a training step needs them. The
plain version is what one would write with torch alone: for grids and planes that is `grid_sample` on values with their
channels first. Each round runs both, beginning with another one, so that whatever else the machine does hits both; a
ratio is the median, over the rounds, of plain by ours. Before they are timed the two must agree.

Symbols: M points, R rays.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from nfc_splat.fields.color_head import ColorHead
from nfc_splat.fields.mlp import MLP
from nfc_splat.files import write_json
from nfc_splat.machine import hardware, versions
from nfc_splat.rendering.grids import interpolate_grid
from nfc_splat.rendering.harmonics import spherical_harmonics, spherical_harmonics_reference
from nfc_splat.rendering.hash_encoding import HashLevels, hash_encode
from nfc_splat.rendering.hexplane import interpolate_hexplane
from nfc_splat.rendering.kernels.hash_reference import hash_encode_reference
from nfc_splat.rendering.kernels.hexplane_reference import hexplane_grid_sample
from nfc_splat.rendering.occupancy import march_occupancy, ray_box
from nfc_splat.rendering.packed import accumulate, render_weights
from nfc_splat.rendering.tensor_cells import find_cells
from nfc_splat.rendering.trivectors import query_trivectors
from nfc_splat.terminal import print_table, progress

WARM_UP = 2
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Sizes:
    """How much the kernels are given: what a training step of a published configuration asks of them."""

    points: int = 2**16
    grid: int = 160
    log2_table_size: int = 19
    rays: int = 4096
    samples: int = 30  # per ray, on average
    cells: int = 121  # of the vectors of the largest tensors
    nodes: int = 64  # of the coarser of two HexPlanes along an axis of space
    rows: int = 75  # and of both along time


SIZES = Sizes()


@dataclass(frozen=True, eq=False)
class Pair:
    """One function twice: ours and plain, each with what it is differentiated by."""

    name: str
    ours: Function
    plain: Function
    leaves: Sequence[Tensor]
    plain_leaves: Sequence[Tensor]


@dataclass(frozen=True)
class Row:
    """A line of the table: median milliseconds, and how many times as long plain torch takes."""

    kernel: str
    ours_ms: float
    plain_ms: float
    ratio: float


def compare_kernels(repeats: int, threads: int, device: str, record: Path | None) -> int:
    """Print the table and write it to `record`; returns the exit code."""
    rows = []
    print(f"median of {repeats} rounds, forward and backward, {device}, {threads} threads; milliseconds")
    with progress(len(PAIRS), "kernels") as advance:
        for make in PAIRS:
            rows.append(time_pair(make(SIZES, device), repeats, device))
            advance()
    cells = [[row.kernel, f"{row.ours_ms:.2f}", f"{row.plain_ms:.2f}", f"{row.ratio:.1f}"] for row in rows]
    print_table([["kernel", "ours", "plain torch", "ratio"], *cells], numbers=(1, 2, 3))
    if record is not None:
        facts = {"repeats": repeats, "threads": threads, "device": device, "sizes": asdict(SIZES)}
        facts |= {"hardware": hardware(), "versions": versions(), "rows": [asdict(row) for row in rows]}
        write_json(record, facts)
    return 0


def time_pair(pair: Pair, repeats: int, device: str) -> Row:
    """Run both in turn; the first rounds are not counted.

    Raises:
        RuntimeError: the two do not agree.
    """
    sides = {"ours": (pair.ours, pair.leaves), "plain": (pair.plain, pair.plain_leaves)}
    upstream = _checked(pair)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(WARM_UP + repeats):
        for side in ("ours", "plain") if turn % 2 else ("plain", "ours"):
            started = _clock(device)
            _evaluate(*sides[side], upstream)
            seconds[side].append(_clock(device) - started)
    ours, plain = (np.array(times[WARM_UP:]) for times in seconds.values())
    return Row(pair.name, *(float(1e3 * np.median(times)) for times in (ours, plain)), float(np.median(plain / ours)))


def _checked(pair: Pair) -> Tensor:
    """An upstream gradient for both, once they agree."""
    with torch.no_grad():
        ours, plain = pair.ours(*pair.leaves), pair.plain(*pair.plain_leaves)
    if ours.shape != plain.shape or not torch.allclose(ours, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
        raise RuntimeError(f"{pair.name}: our kernel and plain torch do not agree")
    return torch.randn_like(ours)


def _evaluate(function: Function, leaves: Sequence[Tensor], upstream: Tensor) -> None:
    values = function(*leaves)
    if leaves:
        torch.autograd.grad(values, leaves, upstream)


def _clock(device: str) -> float:
    """Seconds, once the device has finished what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------ the kernels


def _random(*shape: int, device: str, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def hash_encoding(sizes: Sizes, device: str) -> Pair:
    """16 levels of 2 features from 16^3 to 2048^3 (Instant-NGP, Table 1)."""
    levels = HashLevels.between(16, 2, sizes.log2_table_size, 16, 2048)
    points = _random(sizes.points, 3, device=device)
    table = levels.table(device=device).requires_grad_()
    name = f"hash encoding, {sizes.points:,} points, 16 x 2, 2^{sizes.log2_table_size}"
    ours, plain = (lambda t: hash_encode(points, t, levels)), (lambda t: hash_encode_reference(points, t, levels))
    return Pair(name, ours, plain, [table], [table])


def interpolation(channels: int) -> Callable[[Sizes, str], Pair]:
    """Trilinear interpolation in a voxel grid."""

    def make(sizes: Sizes, device: str) -> Pair:
        points = _random(sizes.points, 3, device=device)
        grid = _random(*[sizes.grid] * 3, channels, device=device, seed=1)
        volume = grid.permute(3, 0, 1, 2)[None].contiguous().requires_grad_()
        low, high = torch.zeros(3, device=device), torch.ones(3, device=device)

        def plain(volume: Tensor) -> Tensor:
            place = (2 * points - 1).flip(-1)[None, :, None, None]
            return grid_sample(volume, place, align_corners=True)[0, :, :, 0, 0].T

        name = f"interpolation, {sizes.points:,} points, {sizes.grid}^3 x {channels}"
        ours = lambda grid: interpolate_grid(grid, points, low, high)  # noqa: E731
        return Pair(name, ours, plain, [grid.requires_grad_()], [volume])

    return make


def hexplanes(sizes: Sizes, device: str) -> Pair:
    """Two levels of six planes of 32 channels (4DGS's of D-NeRF's scenes), at a moment between two rows."""
    points, channels = _random(sizes.points, 3, device=device).requires_grad_(), 32
    time, ends = torch.tensor(0.4321, device=device), torch.eye(4, device=device)[3]
    planes = []
    for seed, nodes in enumerate((sizes.nodes, 2 * sizes.nodes)):
        planes.append(_random(3, nodes, nodes, channels, device=device, seed=2 * seed + 1))
        planes.append(_random(3, sizes.rows, nodes, channels, device=device, seed=2 * seed + 2))
    images = [plane.permute(0, 3, 1, 2).contiguous().requires_grad_() for plane in planes]
    box = -ends, torch.ones(4, device=device)  # times from -1, as published

    def ours(points: Tensor, *planes: Tensor) -> Tensor:
        return interpolate_hexplane([planes[:2], planes[2:]], points, time, *box)

    def plain(points: Tensor, *images: Tensor) -> Tensor:
        views = [image.permute(0, 2, 3, 1) for image in images]
        return hexplane_grid_sample([views[:2], views[2:]], points, time, *box)

    name = f"HexPlane, {sizes.points:,} points, {sizes.nodes} and {2 * sizes.nodes} nodes x {channels}"
    return Pair(name, ours, plain, [points, *(plane.requires_grad_() for plane in planes)], [points, *images])


def compositing(sizes: Sizes, device: str) -> Pair:
    """Weights of packed samples and the colours they add up to."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 2 * sizes.samples + 1, (sizes.rays,), generator=generator)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(device)
    total = int(offsets[-1])
    alphas = (0.2 * _random(total, device=device)).requires_grad_()
    colors = _random(total, 3, device=device, seed=1).requires_grad_()

    def colored(backend: Any) -> Function:
        def draw(alphas: Tensor, colors: Tensor) -> Tensor:
            weights, left = render_weights(alphas, offsets, backend=backend)
            return accumulate(weights, colors, offsets, backend=backend) + left[:, None]

        return draw

    name = f"weights and colours, {sizes.rays:,} rays of about {sizes.samples} samples"
    return Pair(name, colored("auto"), colored("reference"), [alphas, colors], [alphas, colors])


def marching(sizes: Sizes, device: str) -> Pair:
    """Finding the occupied samples of rays through a grid that holds a hollow ball; it has no gradient."""
    generator = torch.Generator().manual_seed(0)
    origins = 3 * torch.nn.functional.normalize(torch.randn(sizes.rays, 3, generator=generator), dim=-1)
    aims = torch.rand(sizes.rays, 3, generator=generator) - 0.5
    origins, directions = origins.to(device), torch.nn.functional.normalize(aims - origins, dim=-1).to(device)
    places = torch.linspace(-1, 1, sizes.grid)
    radii = torch.stack(torch.meshgrid(places, places, places, indexing="ij")).norm(dim=0)
    occupied = ((radii - 0.6).abs() < 0.06).to(device)
    high = torch.ones(3, device=device)
    start, stop = ray_box(origins, directions, -high, high, 0.0, 10.0)
    stride = torch.full_like(start, 1 / sizes.grid)
    counts = ((stop - start) / stride).clamp_min(0).nan_to_num(0).long()
    arguments = (origins, directions, start, stride, counts, None, occupied, -high, high)
    ours, plain = (
        lambda backend=backend: march_occupancy(*arguments, lookup="node", backend=backend)[0]
        for backend in ("auto", "reference")
    )
    return Pair(f"occupied samples, {sizes.rays:,} rays, {sizes.grid}^3", ours, plain, [], [])


def harmonics(sizes: Sizes, device: str) -> Pair:
    """Four bands of spherical harmonics."""
    directions = torch.nn.functional.normalize(_random(sizes.points, 3, device=device) - 0.5, dim=-1).requires_grad_()
    ours, plain = (lambda d: spherical_harmonics(d, 4)), (lambda d: spherical_harmonics_reference(d, 4))
    return Pair(f"spherical harmonics, {sizes.points:,} directions, 4 bands", ours, plain, [directions], [directions])


def decoding(sizes: Sizes, device: str) -> Pair:
    """NFC's binary target encoding: 8 logits per channel become a colour."""
    head = ColorHead("binary").to(device)
    logits = (4 * _random(sizes.points, 24, device=device) - 2).requires_grad_()
    plain = lambda logits: head.encoding(logits.unflatten(-1, (3, 8)))  # noqa: E731
    return Pair(f"colour decoding, {sizes.points:,} x 24 logits", head, plain, [logits], [logits])


def perceptron(sizes: Sizes, device: str) -> Pair:
    """The network behind a hash encoding (Instant-NGP, section 5.4): one hidden layer of 64."""
    ours, plain = MLP(32, 16, 64, 1).to(device), MLP(32, 16, 64, 1, fused=False).to(device)
    plain.load_state_dict(ours.state_dict())
    inputs = _random(sizes.points, 32, device=device).requires_grad_()
    leaves = ([inputs, *network.parameters()] for network in (ours, plain))
    functions = (lambda x, *_, network=network: network(x) for network in (ours, plain))
    return Pair(f"perceptron, {sizes.points:,} x 32, 64, 16", *functions, *leaves)


def tri_vectors(ranks: tuple[int, int, int], summed: bool) -> Callable[[Sizes, str], Pair]:
    """Tensors of three scales (Strivec's of the Chair, grown up) asked at runs of 16 samples half a cell apart: their
    densities, or the ranks of their appearance."""

    def make(sizes: Sizes, device: str) -> Pair:
        halves, length = (0.3, 0.15, 0.075), 1.2
        cells = [max(2, sizes.cells // 2**level) for level in range(3)]
        centers = []
        for half in halves:
            middles = torch.arange(half * 2 / 3, length, half * 4 / 3)
            centers.append(torch.cartesian_prod(middles, middles, middles))
        cell = 2 * halves[0] / cells[0]
        lattice = find_cells(torch.zeros(3), cell, (math.ceil(length / cell),) * 3, centers, halves, 4).to(device)
        shapes = zip(centers, cells, ranks, strict=True)
        lines = [_random(len(c), 3, d + 1, r, device=device, seed=r + d) - 0.5 for c, d, r in shapes]
        lines = [line.requires_grad_() for line in lines]
        starts, runs = _random(-(-sizes.points // 16), 1, 3, device=device), torch.arange(16, device=device)
        towards = torch.nn.functional.normalize(_random(len(starts), 1, 3, device=device, seed=1) - 0.5, dim=-1)
        points = (0.1 + 0.8 * starts * length + 0.5 * cell * runs[:, None] * towards).reshape(-1, 3)
        rows = lattice.rows_of(points)

        def asked(backend: Any) -> Function:
            options = {"summed": summed, "clamp": False, "backend": backend}
            return lambda *lines: query_trivectors(lattice, lines, points, rows, **options)

        what = "density" if summed else "appearance"
        name = f"tri-vector {what}, {len(points):,} samples, ranks {', '.join(map(str, ranks))}"
        return Pair(name, asked("auto"), asked("reference"), lines, lines)

    make.__name__ = f"tri_vectors_{'summed' if summed else 'apart'}"
    return make


PAIRS: Sequence[Callable[[Sizes, str], Pair]] = (
    hash_encoding,
    interpolation(12),
    interpolation(1),
    hexplanes,
    marching,
    compositing,
    harmonics,
    decoding,
    perceptron,
    tri_vectors((32, 24, 16), summed=True),
    tri_vectors((48, 48, 48), summed=False),
)
