"""Sparse tri-vectors: hand-made numbers, the reference in float64, the kernel against it, and any number of threads."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from trivector_toys import RANKS, converted, toy_cells, toy_lines, toy_points

from nfc_splat.cameras import Rays
from nfc_splat.errors import UserError
from nfc_splat.rendering.density_grid import opacity
from nfc_splat.rendering.kernels.threads import set_threads
from nfc_splat.rendering.kernels.trivectors_reference import query_in_parts, query_reference
from nfc_splat.rendering.packed import render_weights
from nfc_splat.rendering.samplers import box_steps
from nfc_splat.rendering.tensor_cells import find_cells
from nfc_splat.rendering.trivectors import densities_along, query_trivectors

BACKENDS = ("cpu", "reference")


def single(cells=4, ranks=3, half=0.5, seed=0):
    """One tensor about the origin that all cells belong to, and its vectors."""
    lattice = find_cells(torch.full((3,), -0.6), 0.3, (4, 4, 4), [torch.zeros(1, 3)], [half], 2)
    return lattice, [torch.randn(1, 3, cells + 1, ranks, generator=torch.Generator().manual_seed(seed))]


def query(lattice, lines, points, backend, summed=True, clamp=False):
    return query_trivectors(
        lattice, lines, points, lattice.rows_of(points), summed=summed, clamp=clamp, backend=backend
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ranks", [3, 8, 19])
def test_a_single_tensor_is_the_sum_of_outer_products_at_its_nodes(backend, ranks):
    lattice, lines = single(ranks=ranks)
    axis = torch.linspace(-0.5, 0.5, 5)
    nodes = torch.cartesian_prod(axis, axis, axis)
    x, y, z = lines[0][0]
    expected = torch.einsum("ir,jr,kr->ijk", x, y, z).reshape(-1)
    torch.testing.assert_close(query(lattice, lines, nodes, backend), expected, rtol=1e-4, atol=1e-5)
    every = torch.einsum("ir,jr,kr->ijkr", x, y, z).reshape(-1, ranks)
    torch.testing.assert_close(query(lattice, lines, nodes, backend, summed=False), every, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_between_nodes_each_vector_is_linear(backend):
    lattice, lines = single(ranks=1)
    share = torch.tensor([[0.1, 0.35, 0.7], [0.9, 0.5, 0.01]])
    points = share - 0.5
    values = torch.ones(2)
    for axis in range(3):
        place = share[:, axis] * 4
        node = place.long()
        line = lines[0][0, axis, :, 0]
        values = values * torch.lerp(line[node], line[node + 1], place - node)
    torch.testing.assert_close(query(lattice, lines, points, backend), values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamping_differs_from_extrapolating_only_outside_of_the_tensor(backend):
    lattice, lines = single()
    inside = torch.rand(200, 3, generator=torch.Generator().manual_seed(5)) - 0.5
    torch.testing.assert_close(
        query(lattice, lines, inside, backend), query(lattice, lines, inside, backend, clamp=True), rtol=0, atol=0
    )
    outside = inside.clone()
    outside[:, 0] = 0.5 + 0.09 * torch.rand(200, generator=torch.Generator().manual_seed(6))
    border = outside.clone()
    border[:, 0] = 0.5
    clamped, on = query(lattice, lines, outside, backend, clamp=True), query(lattice, lines, border, backend)
    torch.testing.assert_close(clamped, on, rtol=1e-5, atol=1e-5)
    gone_on = query(lattice, lines, outside, backend)
    assert ((gone_on - clamped).abs() > 1e-4).float().mean() > 0.9
    further = border.clone()
    further[:, 0] = 0.25  # the last node but one: the line goes on as it came from there
    slope = (on - query(lattice, lines, further, backend)) / 0.25
    torch.testing.assert_close(gone_on, on + slope * (outside[:, 0] - 0.5), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_add_up(backend):
    lattice, points = toy_cells(), toy_points(300)
    lines, rows = toy_lines(lattice), lattice.rows_of(points)
    alone = []
    for level in range(2):
        others = [line if own == level else torch.zeros_like(line) for own, line in enumerate(lines)]
        alone.append(query_trivectors(lattice, others, points, rows, summed=True, clamp=False, backend=backend))
    together = query_trivectors(lattice, lines, points, rows, summed=True, clamp=False, backend=backend)
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-4)
    ranks = query_trivectors(lattice, lines, points, rows, summed=False, clamp=False, backend=backend)
    torch.testing.assert_close(ranks.sum(1), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_are_averaged_by_their_nearness(backend):
    centers = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]])
    lattice = find_cells(torch.full((3,), -0.3), 0.1, (6, 6, 6), [centers], [0.5], 4)
    lines = [torch.ones(2, 3, 3, 1)]
    lines[0][1] *= 3 ** (1 / 3)  # tensors of 1 and 3
    points = torch.tensor([[0.05, 0.0, 0.0], [0.1, 0.1, 0.0]])
    values = query(lattice, lines, points, backend)
    expected = torch.tensor([(1 / 0.05 + 3 / 0.15) / (1 / 0.05 + 1 / 0.15), 2.0])
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)
    far = find_cells(torch.full((3,), 1.0), 0.5, (2, 2, 2), [torch.zeros(1, 3)], [4.0], 4)
    point = torch.tensor([[1.5, 1.5, 1.5]])  # a sum of weights below 1 counts as 1
    expected = torch.tensor([1 / (1.5 * math.sqrt(3))])
    torch.testing.assert_close(query(far, [torch.ones(1, 3, 2, 1)], point, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("summed", [True, False])
def test_a_scene_in_other_units_has_the_same_values(backend, summed):
    """A hundred times as large, gradients of points are a hundredth; distances count in the tensors' own unit."""
    lattice, points = toy_cells(), toy_points(500)
    lines = toy_lines(lattice)
    v_values = torch.randn(500, *([] if summed else [sum(RANKS)]), generator=torch.Generator().manual_seed(2))
    centers, halves = [100 * center for center in lattice.centers], [100 * half for half in lattice.halves]
    low, cell = 100 * lattice.low, 100 * lattice.cell
    large = find_cells(low, cell, lattice.size, centers, halves, lattice.neighbors.shape[2], unit=70.0)
    rows = lattice.rows_of(points)
    assert ((rows >= 0) == (large.rows_of(100 * points) >= 0)).float().mean() > 0.99
    large = dataclasses.replace(large, rows=lattice.rows, neighbors=lattice.neighbors)
    found = []
    for cells, scale in ((lattice, 1.0), (large, 100.0)):
        leaves = [(scale * points).requires_grad_(), *(line.clone().requires_grad_() for line in lines)]
        values = query_trivectors(cells, leaves[1:], leaves[0], rows, summed=summed, clamp=False, backend=backend)
        v_points, *v_lines = torch.autograd.grad(values, leaves, v_values)
        found.append([values, scale * v_points, *v_lines])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.detach().abs().max()))


def values_and_gradients(lattice, lines, points, v_values, backend, summed, clamp):
    leaves = [leaf.clone().requires_grad_() for leaf in (points, *lines)]
    values = query(lattice, leaves[1:], leaves[0], backend, summed, clamp)
    return values, *torch.autograd.grad(values, leaves, v_values)


@pytest.mark.parametrize(("summed", "clamp"), list(itertools.product([True, False], repeat=2)))
def test_the_kernel_equals_the_reference_in_float64(summed, clamp):
    lattice, points = toy_cells(), toy_points(2000)
    lines = toy_lines(lattice)
    v_values = torch.randn(2000, *([] if summed else [sum(RANKS)]), generator=torch.Generator().manual_seed(2))
    exact = converted(lattice, torch.float64)
    ours = values_and_gradients(lattice, lines, points, v_values, "cpu", summed, clamp)
    leaves = [leaf.double().requires_grad_() for leaf in (points, *lines)]
    rows = lattice.rows_of(points)  # which cell a point lies in is a matter of the last bit: the same for both
    theirs = query_reference(exact, leaves[1:], leaves[0], rows, summed, clamp)
    theirs = theirs, *torch.autograd.grad(theirs, leaves, v_values.double())
    assert (rows < 0).float().mean() > 0.05
    for own, other in zip(ours, theirs, strict=True):
        largest = float(other.detach().abs().max())
        assert largest > 0.1
        torch.testing.assert_close(own.double(), other, rtol=1e-3, atol=2e-5 * largest)


@pytest.mark.parametrize(("summed", "clamp"), list(itertools.product([True, False], repeat=2)))
def test_the_reference_is_exact_and_twice_differentiable(summed, clamp):
    lattice = converted(toy_cells(nearest=2, drop=0.0), torch.float64)
    points = 0.2 + 0.6 * torch.rand(2, 3, generator=torch.Generator().manual_seed(4)).double()
    rows = lattice.rows_of(points)
    assert (rows >= 0).all()
    generator, tensors, parts, empty = torch.Generator().manual_seed(5), [], [], []
    for level, centers in enumerate(lattice.centers):
        asked = lattice.neighbors[rows.long(), level].unique().long()
        tensors.append(asked[asked >= 0])
        parts.append(torch.randn(len(tensors[-1]), 3, 3, 1, generator=generator).double().requires_grad_())
        empty.append(torch.zeros(len(centers), 3, 3, 1).double())

    def function(points, *parts):
        lines = [zeros.index_copy(0, at, part) for zeros, at, part in zip(empty, tensors, parts, strict=True)]
        return query_reference(lattice, lines, points, rows, summed, clamp)

    arguments = points.requires_grad_(), *parts
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


def test_what_runs_on_a_gpu_is_the_same_function(monkeypatch):
    monkeypatch.setattr("nfc_splat.rendering.kernels.trivectors_reference.SAMPLES_AT_ONCE", 64)
    lattice, points = converted(toy_cells(), torch.float64), toy_points(200).double()
    lines, rows = [line.double() for line in toy_lines(lattice)], lattice.rows_of(points)
    results = []
    for function in (query_in_parts, query_reference):
        leaves = [leaf.clone().requires_grad_() for leaf in (points, *lines)]
        values = function(lattice, leaves[1:], leaves[0], rows, False, False)
        weights = torch.arange(values.numel()).double().view_as(values).sin()
        results.append([values, *torch.autograd.grad(values, leaves, weights)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("summed", [True, False])
def test_cuda_equals_the_reference(summed):
    lattice, points = toy_cells(), toy_points(500)
    lines = toy_lines(lattice)
    v_values = torch.randn(500, *([] if summed else [sum(RANKS)]), generator=torch.Generator().manual_seed(2))
    exact = values_and_gradients(lattice, lines, points, v_values, "reference", summed, False)
    moved = lattice.to("cuda"), [line.cuda() for line in lines], points.cuda(), v_values.cuda()
    for ours, theirs in zip(values_and_gradients(*moved, "auto", summed, False), exact, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.detach().abs().max()))


def rays_through_the_box(count=40):
    generator = torch.Generator().manual_seed(7)
    origins = torch.tensor([0.5, 0.5, -2.0]) + 0.2 * torch.randn(count, 3, generator=generator)
    aims = torch.rand(count, 3, generator=generator)
    directions = aims - origins
    return Rays(origins, directions, None, 0.0, 9.0)


def looked_along(backend, stop, shift=-1.0):
    lattice = toy_cells()
    lines = [line.requires_grad_() for line in toy_lines(lattice)]
    samples = box_steps(rays_through_the_box(), *lattice.box, 0.03, offset=0.0, occupancy=lattice.occupied)
    options = {"clamp": False, "shift": shift, "interval": 0.7, "stop": stop, "backend": backend}
    seen, raw, rows = densities_along(lattice, lines, samples, **options)
    gradients = torch.autograd.grad(raw, lines, torch.arange(len(raw)).float().cos())
    return lattice, lines, samples, seen, raw, rows, gradients


@pytest.mark.parametrize("stop", [0.0, 1e-3, 0.3])
def test_densities_along_rays_are_those_of_the_samples_that_are_seen(stop):
    results = []
    for backend in BACKENDS:
        lattice, lines, samples, seen, raw, rows, gradients = looked_along(backend, stop)
        assert torch.equal(rows, lattice.rows_of(seen.positions))
        at_once = query_trivectors(lattice, lines, seen.positions, rows, summed=True, clamp=False, backend=backend)
        torch.testing.assert_close(raw, at_once, rtol=1e-5, atol=1e-5)
        everything = query(lattice, lines, samples.positions, backend).detach()
        alphas = opacity(everything, -1.0, 0.7) * (lattice.rows_of(samples.positions) >= 0)
        weights, _ = render_weights(alphas, samples.offsets, stop=stop)
        kept, _ = samples.keep(weights > 0)
        assert len(kept) < len(samples) or not stop
        for name in ("t", "widths", "ray", "offsets", "steps", "positions"):
            torch.testing.assert_close(getattr(seen, name), getattr(kept, name), rtol=1e-6, atol=1e-6)
        results.append((raw, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("summed", [True, False])
def test_any_number_of_threads_gives_the_same_bits(summed):
    lattice, points = toy_cells(), toy_points(3000)
    lines = toy_lines(lattice)
    v_values = torch.randn(3000, *([] if summed else [sum(RANKS)]), generator=torch.Generator().manual_seed(2))
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            found = values_and_gradients(lattice, lines, points, v_values, "cpu", summed, False)
            *_, seen, raw, rows, gradients = looked_along("cpu", 1e-3)
            again = toy_cells()
            results.append([*found, seen.positions, raw, rows, *gradients, again.rows, again.neighbors])
    finally:
        set_threads()
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_places_outside_of_active_cells_give_nothing(backend):
    lattice = toy_cells()
    lines = [line.requires_grad_() for line in toy_lines(lattice)]
    points = torch.tensor([[float("nan"), 0.5, 0.5], [-1.0, 0.5, 0.5], [0.5, 0.5, float("inf")]]).requires_grad_()
    for summed in (True, False):
        values = query(lattice, lines, points, backend, summed)
        assert not values.any()
        gradients = torch.autograd.grad(values.sum(), lines)
        assert not any(gradient.any() for gradient in gradients)
    values = query(lattice, lines, torch.zeros(0, 3), backend, summed=False)
    assert values.shape == (0, sum(RANKS))
    assert not any(gradient.any() for gradient in torch.autograd.grad(values.sum(), lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(5, 4)}, r"points must be floating point \[M, 3\]"),
        ({"rows": torch.zeros(4, dtype=torch.int32)}, r"rows must be \[5\]"),
        ({"lines": toy_lines(toy_cells())[:1]}, "lines must be of 2 scales"),
        ({"lines": [line[:1] for line in toy_lines(toy_cells())]}, "lines of scale 0 must be"),
        ({"lines": [line.double() for line in toy_lines(toy_cells())]}, "lines of scale 0 must be torch.float32"),
        ({"backend": "numba"}, "backend must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    lattice = toy_cells()
    arguments = {"lines": toy_lines(lattice), "points": toy_points(5), "rows": torch.zeros(5, dtype=torch.int32)}
    with pytest.raises(ValueError, match=message):
        query_trivectors(lattice, **(arguments | {"summed": True, "clamp": False} | change))


def test_a_backend_that_cannot_serve_says_what_to_do():
    lattice, points = toy_cells(), toy_points(5)
    with pytest.raises(UserError, match="tri-vectors on cuda cannot serve tensors on cpu"):
        query(lattice, toy_lines(lattice), points, "cuda")
