"""The hash encoding: tiny-cuda-nn's layout, the reference by hand and by gradcheck, the kernels against it."""

import gc
import math

import pytest
import torch

from nfc_splat.rendering.hash_encoding import HashLevels, hash_encode, hash_encode_with_jacobian
from nfc_splat.rendering.kernels.hash_cuda import hash_encode_cuda, tiny_cuda_nn, usable
from nfc_splat.rendering.kernels.hash_reference import hash_encode_reference, hash_encode_with_jacobian_reference
from nfc_splat.rendering.kernels.threads import available_cores, set_threads

MIXED = HashLevels(5, 2, 9, 4, 1.7)  # two levels with a row per vertex, three hashed


def problem(levels, count=700, seed=0):
    """Points in the cube, its corners among them, and a table with numbers of about 1."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator)
    points[:2] = torch.tensor([[0.0], [1.0]])
    return points, torch.randn(levels.rows, levels.n_features, generator=generator)


def close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= tolerance * expected.norm()


# ------------------------------------------------------------------------------------------------------- the layout


@pytest.mark.parametrize(("finest", "parameters"), [(2048, 12196240), (8192, 13074912)])
def test_as_many_parameters_as_instant_ngp_reports(finest, parameters):
    """What its log says for the NeRF defaults: 16 levels of 2 features from 16, 2^19 rows at most."""
    levels = HashLevels.between(16, 2, 19, 16, finest)
    assert levels.rows * levels.n_features == parameters
    assert (levels.resolutions[0], levels.resolutions[-1]) == (16, finest)
    assert levels.hashed == tuple(n**3 > 2**19 for n in levels.resolutions)


def test_sizes_starts_and_scales():
    levels = HashLevels(4, 2, 14, 5, 2.0)
    assert levels.scales == (4.0, 9.0, 19.0, 39.0)
    assert levels.resolutions == (5, 10, 20, 40)
    assert levels.sizes == (128, 1000, 8000, 16384)  # 125 is rounded up to a multiple of 8
    assert levels.starts == (0, 128, 1128, 9128)
    assert levels.hashed == (False, False, False, True)
    assert (levels.rows, levels.out_features) == (25512, 8)


def test_a_level_is_hashed_only_if_its_vertices_do_not_fit():
    assert HashLevels(1, 2, 12, 16, 1.0).hashed == (False,)  # 16^3 = 2^12
    assert HashLevels(1, 2, 12, 17, 1.0).hashed == (True,)


@pytest.mark.parametrize(
    "settings",
    [
        (0, 2, 14, 16, 2.0),
        (4, 9, 14, 16, 2.0),
        (4, 2, 2, 16, 2.0),
        (4, 2, 14, 0, 2.0),
        (4, 2, 14, 16, 0.5),
        (4, 2, 14, 16, math.nan),
        (40, 2, 14, 16, 2.0),
    ],
)
def test_levels_that_make_no_sense(settings):
    with pytest.raises(ValueError, match="must be"):
        HashLevels(*settings)


def test_the_initial_table():
    torch.manual_seed(0)
    table = MIXED.table()
    assert table.shape == (MIXED.rows, 2)
    assert 0.99e-4 < table.abs().max() <= 1e-4
    assert abs(table.mean()) < 5e-6


# ---------------------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("resolution", [8, 100])
def test_one_level_by_hand(resolution):
    """At a vertex the value is the vertex's row, found by plain integers; halfway between two it is their mean."""
    levels = HashLevels(1, 1, 10, resolution, 1.0)
    scale, size = resolution - 1, levels.sizes[0]
    table = torch.arange(levels.rows, dtype=torch.float64)[:, None]

    def row(x, y, z):
        if resolution == 8:
            return (x + 8 * y + 64 * z) % size
        return (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % size

    for vertex in [(1, 2, 3), (5, 1, 4), (resolution - 1, resolution - 2, 1)]:
        point = (torch.tensor([vertex], dtype=torch.float64) - 0.5) / scale
        assert hash_encode_reference(point, table, levels).item() == pytest.approx(row(*vertex), abs=1e-6)
    between = (torch.tensor([[3.5, 2.0, 5.0]], dtype=torch.float64) - 0.5) / scale
    mean = 0.5 * (row(3, 2, 5) + row(4, 2, 5))
    assert hash_encode_reference(between, table, levels).item() == pytest.approx(mean, abs=1e-6)


def test_the_reference_passes_gradcheck():
    levels = HashLevels(3, 2, 6, 3, 1.6)
    points, table = problem(levels, 6)
    points = (0.1 + 0.8 * points.double()).requires_grad_()
    table = table.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, levels), (points, table))
    fixed = points.detach()
    assert torch.autograd.gradcheck(lambda t: hash_encode_with_jacobian(fixed, t, levels), (table,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outside_of_the_cube_nothing_changes_along_an_axis(dtype):
    points = torch.tensor([[1.3, 0.4, 0.6], [0.5, -0.2, 1.7], [0.3, 0.4, 0.5]], dtype=dtype)
    _, jacobian = hash_encode_with_jacobian(points, MIXED.table().to(dtype), MIXED)
    still = jacobian.abs().amax(1) == 0
    assert still.tolist() == [[True, False, False], [False, True, True], [False, False, False]]


def test_the_jacobian_is_the_derivative():
    points, table = problem(MIXED, 40)
    points = (0.1 + 0.8 * points.double()).requires_grad_()
    features, jacobian = hash_encode_with_jacobian_reference(points, table.double(), MIXED)
    for k in range(MIXED.out_features):
        (slope,) = torch.autograd.grad(features[:, k].sum(), points, retain_graph=True)
        torch.testing.assert_close(jacobian[:, k], slope)


# ----------------------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 255, 700])
def test_kernels_equal_the_reference(n_features, count):
    levels = HashLevels(5, n_features, 9, 4, 1.7)
    points, table = problem(levels, max(count, 2))
    points, table = points[:count], table.requires_grad_()
    features = hash_encode(points, table, levels)
    expected = hash_encode_reference(points.double(), table.double(), levels)
    close(features, expected, 1e-6)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(features, table, cotangent)
    (exact,) = torch.autograd.grad(expected, table, cotangent.double())
    close(gradient, exact, 1e-6)


@pytest.mark.parametrize("n_features", [1, 2, 4])
@pytest.mark.parametrize("outputs", ["both", "features", "jacobian"])
def test_the_jacobian_kernels_equal_the_reference(n_features, outputs):
    levels = HashLevels(5, n_features, 9, 4, 1.7)
    points, table = problem(levels)
    leaves = points.requires_grad_(), table.requires_grad_()
    exact_leaves = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
    got = hash_encode_with_jacobian(*leaves, levels)
    expected = hash_encode_with_jacobian_reference(*exact_leaves, levels)
    close(got[0], expected[0], 1e-6)
    close(got[1], expected[1], 1e-6)
    used = {"both": (0, 1), "features": (0,), "jacobian": (1,)}[outputs]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(got[k].shape, generator=generator) for k in used]
    sought = (0, 1) if 0 in used else (1,)  # the Jacobian alone has no gradient by position
    gradients = torch.autograd.grad([got[k] for k in used], [leaves[k] for k in sought], cotangents)
    exact = torch.autograd.grad(
        [expected[k] for k in used], [exact_leaves[k] for k in sought], [v.double() for v in cotangents]
    )
    for gradient, reference in zip(gradients, exact, strict=True):
        close(gradient, reference, 1e-5)


def test_the_published_size_of_table():
    levels = HashLevels.between(16, 2, 19, 16, 2048)
    points, table = problem(levels, 3000)
    table = (table * 1e-4).requires_grad_()
    features = hash_encode(points, table, levels)
    expected = hash_encode_reference(points.double(), table.detach().double(), levels)
    close(features, expected, 1e-4)  # a position is known to 2048 * 6e-8 of a cell in single precision
    features.sum().backward()
    assert table.grad.sum().item() == pytest.approx(3000 * 32, rel=1e-4)


def test_points_have_a_gradient_through_the_kernel():
    points, table = problem(MIXED)
    points.requires_grad_()
    exact = points.detach().double().requires_grad_()
    hash_encode(points, table, MIXED).square().sum().backward()
    hash_encode_reference(exact, table.double(), MIXED).square().sum().backward()
    close(points.grad, exact.grad, 1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_points_without_a_gradient_are_left_out(share):
    points, table = problem(MIXED)
    table.requires_grad_()
    generator = torch.Generator().manual_seed(2)
    idle = torch.rand(len(points), generator=generator) >= share
    got = [hash_encode(points, table, MIXED), *hash_encode_with_jacobian(points, table, MIXED)]
    exact_table = table.detach().double().requires_grad_()
    expected = [hash_encode_reference(points.double(), exact_table, MIXED)]
    expected += hash_encode_with_jacobian_reference(points.double(), exact_table, MIXED)
    cotangents = [torch.randn(out.shape, generator=generator) for out in got]
    for cotangent in cotangents:
        cotangent[idle] = 0
    for used in (slice(0, 1), slice(1, 3)):
        (gradient,) = torch.autograd.grad(got[used], table, cotangents[used])
        (exact,) = torch.autograd.grad(expected[used], exact_table, [v.double() for v in cotangents[used]])
        assert (gradient - exact).norm() <= 1e-5 * exact.norm()


def test_a_gradient_that_is_not_a_number_is_not_left_out():
    points, table = problem(MIXED)
    features = hash_encode(points, table.requires_grad_(), MIXED)
    cotangent = torch.zeros_like(features)
    cotangent[5, 3] = torch.nan
    (gradient,) = torch.autograd.grad(features, table, cotangent)
    assert gradient.isnan().sum() == 8


def test_points_outside_count_as_the_nearest_inside():
    _, table = problem(MIXED)
    outside = torch.tensor([[-3.0, 0.5, 2.0], [torch.inf, -torch.inf, 0.2]], requires_grad=True)
    inside = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.2]])
    for dtype in (torch.float32, torch.float64):
        features = hash_encode(outside.detach().to(dtype), table.to(dtype), MIXED)
        assert torch.equal(features, hash_encode(inside.to(dtype), table.to(dtype), MIXED))
    hash_encode(outside, table, MIXED).sum().backward()
    assert outside.grad[0, 0] == outside.grad[0, 2] == outside.grad[1, 0] == 0
    assert outside.grad[0, 1] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_stays_in_its_row(dtype):
    points, table = problem(MIXED)
    whole = hash_encode(points.to(dtype), table.to(dtype), MIXED)
    points[3, 1] = torch.nan
    spoilt = hash_encode(points.to(dtype), table.to(dtype), MIXED)
    assert spoilt[3].isnan().all()
    spoilt[3] = whole[3]
    assert torch.equal(spoilt, whole)


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to compare one thread with two")
def test_one_thread_and_two_give_the_same_bits():
    levels = HashLevels.between(7, 2, 12, 8, 200)
    points, table = problem(levels, 3000)
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            leaf = table.clone().requires_grad_()
            features = hash_encode(points, leaf, levels)
            both = hash_encode_with_jacobian(points, leaf, levels)
            cotangents = [torch.cos(torch.arange(out.numel())).view_as(out) for out in (features, *both)]
            (plain,) = torch.autograd.grad(features, leaf, cotangents[0])
            (slopes,) = torch.autograd.grad(both, leaf, cotangents[1:])
            results.append([features, *both, plain, slopes])
    finally:
        set_threads()
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


# ----------------------------------------------------------------------------------- the memory of the gradient


def test_steps_reuse_the_memory_of_the_gradient():
    points, table = problem(MIXED)
    table.requires_grad_()
    places, gradients = set(), []
    for step in range(3):
        hash_encode(points[step * 100 : step * 100 + 100], table, MIXED).sum().backward()
        places.add(table.grad.data_ptr())
        gradients.append(table.grad.sum().item())
        table.grad = None
    assert len(places) == 1
    assert gradients == pytest.approx([100 * MIXED.out_features] * 3, rel=1e-4)


def test_a_gradient_that_is_held_is_not_overwritten():
    points, table = problem(MIXED)
    table.requires_grad_()
    hash_encode(points, table, MIXED).sum().backward()
    held, before = table.grad, table.grad.clone()
    table.grad = None
    hash_encode(points[:50], table, MIXED).sum().backward()
    assert torch.equal(held, before)
    view = table.grad.view(-1)[5:9]
    table.grad, copy = None, view.clone()
    hash_encode(points, table, MIXED).sum().backward()
    assert torch.equal(view, copy)


def test_gradients_of_several_calls_add_up():
    points, table = problem(MIXED)
    table.requires_grad_()
    exact = table.detach().double().requires_grad_()
    for leaf in (table, exact):
        for _ in range(2):  # without clearing between them
            place = points.to(leaf.dtype)
            (
                hash_encode(place[:300], leaf, MIXED).sum() + hash_encode(place[300:], leaf, MIXED).square().sum()
            ).backward()
    close(table.grad, exact.grad, 1e-6)


def test_a_table_that_is_gone_keeps_no_memory():
    from nfc_splat.rendering.kernels import hash_cpu

    gc.collect()
    before = len(hash_cpu._spare)
    points, table = problem(MIXED)
    table.requires_grad_()
    hash_encode(points, table, MIXED).sum().backward()
    assert len(hash_cpu._spare) == before + 1
    del table
    gc.collect()
    assert len(hash_cpu._spare) == before


# ------------------------------------------------------------------------------------------------------- bad input


def test_arguments_that_do_not_fit():
    points, table = problem(MIXED)
    with pytest.raises(ValueError, match="points must be"):
        hash_encode(points[:, :2], table, MIXED)
    with pytest.raises(ValueError, match="table must be"):
        hash_encode(points, table[1:], MIXED)
    with pytest.raises(ValueError, match="one floating dtype"):
        hash_encode(points.double(), table, MIXED)


def test_tiny_cuda_nn_is_not_touched_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert tiny_cuda_nn() is None
    assert not usable(MIXED)


@pytest.mark.gpu
@pytest.mark.parametrize("n_features", [2, 4])
def test_tiny_cuda_nn_equals_the_reference(n_features):
    levels = HashLevels.between(8, n_features, 14, 16, 256)
    if not torch.cuda.is_available() or not usable(levels):
        pytest.skip("needs a CUDA device and tiny-cuda-nn")
    points, table = (tensor.cuda().requires_grad_() for tensor in problem(levels, 5000))
    exact_points, exact_table = (tensor.detach().double().requires_grad_() for tensor in (points, table))
    features = hash_encode_cuda(points, table, levels)
    expected = hash_encode_reference(exact_points, exact_table, levels)
    close(features, expected, 1e-5)
    features.square().sum().backward()
    expected.square().sum().backward()
    close(table.grad, exact_table.grad, 1e-4)
    close(points.grad, exact_points.grad, 1e-3)
