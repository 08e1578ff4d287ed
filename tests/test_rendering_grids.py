"""Voxel grids: interpolation and total variation against grid_sample, float64 and hand-made numbers."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import grid_sample

from nfc_splat.errors import UserError
from nfc_splat.rendering.grids import add_total_variation_grad, interpolate_grid, max_pool_grid, resize_grid
from nfc_splat.rendering.kernels.threads import set_threads

LOW, HIGH = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([1.5, 2.0, 2.75])
SIZE = (7, 5, 9)


def random_grid(channels, size=SIZE, seed=0):
    return torch.randn(*size, channels, generator=torch.Generator().manual_seed(seed))


def random_points(count, margin=0.3, seed=1):
    """Points in the box and around it, `margin` of its sides beyond each face."""
    place = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * (1 + 2 * margin) - margin
    return LOW + place * (HIGH - LOW)


def sampled(grid, points, low=LOW, high=HIGH):
    """What torch's grid_sample makes of it."""
    place = 2 * (points - low) / (high - low) - 1
    volume = grid.permute(3, 0, 1, 2)[None]
    return grid_sample(volume, place.flip(-1)[None, :, None, None], align_corners=True)[0, :, :, 0, 0].T


def values_and_gradients(function, grid, points, v_values):
    grid, points = grid.clone().requires_grad_(), points.clone().requires_grad_()
    values = function(grid, points)
    return values, *torch.autograd.grad(values, (grid, points), v_values)


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_grid_sample(channels, backend):
    grid, points = random_grid(channels), random_points(500)
    v_values = torch.randn(500, channels, generator=torch.Generator().manual_seed(2))
    box = LOW, HIGH
    drawn = values_and_gradients(lambda g, p: interpolate_grid(g, p, *box, backend=backend), grid, points, v_values)
    box = LOW.double(), HIGH.double()
    exact = values_and_gradients(lambda g, p: sampled(g, p, *box), *(t.double() for t in (grid, points, v_values)))
    for ours, theirs in zip(drawn, exact, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=2e-5)


def test_the_reference_is_exact_and_twice_differentiable():
    grid, points = random_grid(2, (3, 4, 2)).double().requires_grad_(), random_points(6).double().requires_grad_()
    low, high = LOW.double(), HIGH.double()

    def function(g, p):
        return interpolate_grid(g, p, low, high, backend="reference")

    assert torch.allclose(function(grid, points), sampled(grid, points, low, high), rtol=0, atol=1e-14)
    assert gradcheck(function, (grid, points))
    assert gradgradcheck(function, (grid, points))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nodes_hold_their_own_value_and_faces_belong_to_the_box(backend):
    grid = random_grid(3)
    axes = [torch.linspace(float(a), float(b), n) for a, b, n in zip(LOW, HIGH, SIZE, strict=True)]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    assert torch.allclose(interpolate_grid(grid, nodes, LOW, HIGH, backend=backend), grid.reshape(-1, 3), atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_points_that_are_nowhere_give_nothing(backend):
    nan, inf = float("nan"), float("inf")
    bad = torch.tensor([[nan, 1.0, 2.5], [0.0, inf, 2.5], [0.0, 1.0, -inf], [1e30, 1.0, 2.5], [-9.0, 1.0, 2.5]])
    grid, points = random_grid(3).requires_grad_(), torch.cat([bad, random_points(20, margin=0)]).requires_grad_()
    values = interpolate_grid(grid, points, LOW, HIGH, backend=backend)
    assert (values[:5] == 0).all()
    assert (values[5:] != 0).all()
    v_grid, v_points = torch.autograd.grad(values.square().sum(), (grid, points))
    assert v_grid.isfinite().all()
    assert (v_points[:5] == 0).all()
    assert v_points.isfinite().all()


def test_the_gradient_covers_every_node_even_without_points():
    for count in (0, 1):
        grid = random_grid(3).requires_grad_()
        values = interpolate_grid(grid, random_points(count, margin=0), LOW, HIGH)
        (gradient,) = torch.autograd.grad(values.sum(), grid)
        assert gradient.sum().item() == pytest.approx(3 * count, abs=1e-5)
        assert int((gradient != 0).sum()) == 24 * count


def test_the_gradient_becomes_the_parameters_own_without_a_copy():
    """A copy of a large grid's gradient would cost as much as making it."""
    grid = random_grid(3).requires_grad_()
    interpolate_grid(grid, random_points(9), LOW, HIGH).sum().backward()
    first = grid.grad
    interpolate_grid(grid, random_points(9), LOW, HIGH).sum().backward()
    assert grid.grad is first
    assert first.is_contiguous()


@pytest.mark.parametrize("spread", [0.3, -0.45])
def test_any_number_of_threads_gives_the_same_bits(spread):
    grid, points = random_grid(3, (33, 20, 18)), random_points(5000, margin=spread)
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            results.append(
                values_and_gradients(lambda g, p: interpolate_grid(g, p, LOW, HIGH), grid, points, torch.ones(5000, 3))
            )
    finally:
        set_threads()
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_only_what_needs_a_gradient_gets_one():
    grid, points = random_grid(3), random_points(10).requires_grad_()
    interpolate_grid(grid, points, LOW, HIGH).sum().backward()
    assert points.grad is not None
    assert grid.grad is None


def neighbours_by_hand(grid, node):
    """Sum of clamp(own - neighbour, -1, 1), per channel."""
    total = torch.zeros(grid.shape[3], dtype=grid.dtype)
    for axis in range(3):
        for side in (-1, 1):
            other = list(node)
            other[axis] += side
            if 0 <= other[axis] < grid.shape[axis]:
                total += (grid[node] - grid[tuple(other)]).clamp(-1, 1)
    return total


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dense", [True, False])
def test_total_variation_pulls_towards_the_neighbours(backend, dense):
    grid, start = random_grid(2), random_grid(2, seed=3)
    start[start.abs() < 0.5] = 0
    grad = start.clone()
    add_total_variation_grad(grid, grad, 0.6, dense, backend=backend)
    for node in ((0, 0, 0), (3, 2, 4), (6, 4, 8), (0, 2, 8)):
        expected = start[node] + 0.1 * neighbours_by_hand(grid, node) * (dense | (start[node] != 0))
        assert torch.allclose(grad[node], expected, atol=1e-6)
    assert torch.equal(grad == 0, start == 0) == (not dense)


@pytest.mark.parametrize("dense", [True, False])
def test_total_variation_kernel_equals_the_reference(dense):
    grid, start = random_grid(12, (6, 11, 8)), random_grid(12, (6, 11, 8), seed=3).relu()
    results = []
    for threads, backend in ((1, "cpu"), (2, "cpu"), (2, "reference")):
        set_threads(threads)
        results.append(start.clone())
        add_total_variation_grad(grid, results[-1], 1e-2, dense, backend=backend)
    set_threads()
    assert torch.equal(results[0], results[1])
    assert torch.allclose(results[0], results[2], atol=1e-7)


def test_resizing_keeps_a_linear_function():
    def ramp(size):
        axes = [torch.linspace(0, 1, n) for n in size]
        x, y, z = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([x + 2 * y - z, 3 * z], dim=-1)

    for size in ((13, 9, 5), (3, 3, 4)):
        resized = resize_grid(ramp(SIZE), size)
        assert resized.is_contiguous()
        assert torch.allclose(resized, ramp(size), atol=1e-6)


def test_max_pool_looks_at_all_26_neighbours():
    grid = -torch.ones(6, 5, 7)
    grid[2, 3, 4], grid[0, 0, 0] = 5.0, 2.0
    pooled = max_pool_grid(grid)
    expected = -torch.ones(6, 5, 7)
    expected[1:4, 2:5, 3:6] = 5.0
    expected[:2, :2, :2] = 2.0
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(grid=torch.zeros(3, 3, 3)), ValueError, "grid must be"),
        (dict(grid=torch.zeros(3, 1, 3, 2)), ValueError, "2 or more nodes"),
        (dict(points=torch.zeros(4, 2)), ValueError, "points must be"),
        (dict(points=torch.zeros(4, 3).double()), ValueError, "points must be torch.float32"),
        (dict(low=torch.zeros(2)), ValueError, "low and high"),
        (dict(backend="gpu"), ValueError, "backend must be one of"),
        (dict(backend="cuda"), UserError, "leave backend"),
    ],
)
def test_arguments_that_do_not_fit(change, error, message):
    arguments = dict(grid=torch.zeros(3, 3, 3, 2), points=torch.zeros(4, 3), low=torch.zeros(3), high=torch.ones(3))
    with pytest.raises(error, match=message):
        interpolate_grid(**(arguments | change))


def test_float64_asks_for_the_reference():
    with pytest.raises(UserError, match="reference"):
        interpolate_grid(*(t.double() for t in (random_grid(1), random_points(3), LOW, HIGH)))


def test_the_total_variation_wants_a_gradient_of_the_grids_shape():
    with pytest.raises(ValueError, match="like the grid"):
        add_total_variation_grad(random_grid(1), random_grid(2), 1.0, True)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_function():
    grid, points = random_grid(12), random_points(400)
    v_values = torch.ones(400, 12)
    expected = values_and_gradients(lambda g, p: interpolate_grid(g, p, LOW, HIGH), grid, points, v_values)
    box = LOW.cuda(), HIGH.cuda()
    drawn = values_and_gradients(lambda g, p: interpolate_grid(g, p, *box), grid.cuda(), points.cuda(), v_values.cuda())
    for ours, theirs in zip(drawn, expected, strict=True):
        assert torch.allclose(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)
