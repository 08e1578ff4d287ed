"""HexPlane: six planes multiplied, against grid_sample, float64 and hand-made numbers."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import grid_sample

from nfc_splat.errors import UserError
from nfc_splat.rendering.hexplane import interpolate_hexplane
from nfc_splat.rendering.kernels.hexplane_reference import hexplane_grid_sample
from nfc_splat.rendering.kernels.threads import set_threads

LOW, HIGH = torch.tensor([-1.0, 0.5, 2.0, -1.0]), torch.tensor([1.5, 2.0, 2.75, 1.0])


def random_levels(channels, sizes=((7, 5), (12, 5)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: 0.2 + torch.rand(*shape, channels, generator=generator)  # noqa: E731
    return [(draw(3, nodes, nodes), draw(3, rows, nodes)) for nodes, rows in sizes]


def random_points(count, margin=0.3, seed=1):
    """Points in the box and around it, `margin` of its sides beyond each face."""
    place = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * (1 + 2 * margin) - margin
    return LOW[:3] + place * (HIGH - LOW)[:3]


def converted(levels, dtype):
    return [tuple(plane.to(dtype) for plane in level) for level in levels]


def sampled(levels, points, time, low, high):
    """What torch's grid_sample makes of each plane in turn, written as 4DGS describes it."""
    place = 2 * (torch.cat([points, time.expand(len(points), 1)], 1) - low) / (high - low) - 1
    features = []
    for spatial, temporal in levels:
        product = 1.0
        for planes, pairs in ((spatial, ((0, 1), (0, 2), (1, 2))), (temporal, ((0, 3), (1, 3), (2, 3)))):
            for plane, (a, b) in zip(planes, pairs, strict=True):
                at = place[None, :, None, [a, b]]  # grid_sample takes (column, row)
                image = plane.permute(2, 0, 1)[None]
                product = product * grid_sample(image, at, align_corners=True, padding_mode="border")[0, :, :, 0].T
        features.append(product)
    return torch.cat(features, 1)


def values_and_gradients(function, levels, points, time, v_values):
    """Values, and the gradients of points, time and all planes."""
    leaves = [points, time, *(plane for level in levels for plane in level)]
    points, time, *planes = (leaf.clone().requires_grad_() for leaf in leaves)
    levels = list(zip(planes[::2], planes[1::2], strict=True))
    values = function(levels, points, time, LOW.to(points), HIGH.to(points))
    return values, *torch.autograd.grad(values, (points, time, *planes), v_values)


def with_backend(backend):
    return lambda *arguments: interpolate_hexplane(*arguments, backend=backend)


@pytest.mark.parametrize("channels", [5, 32])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_six_grid_samples_and_a_product(channels, backend):
    levels, points, time = random_levels(channels), random_points(500), torch.tensor(0.37)
    v_values = torch.randn(500, 2 * channels, generator=torch.Generator().manual_seed(2))
    drawn = values_and_gradients(with_backend(backend), levels, points, time, v_values)
    arguments = (t.double() for t in (points, time, v_values))
    exact = values_and_gradients(sampled, converted(levels, torch.float64), *arguments)
    for ours, theirs in zip(drawn, exact, strict=True):
        largest = theirs.detach().abs().max().item()
        assert largest > 0
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * largest)


def test_what_runs_on_a_gpu_is_the_same_function():
    levels, points, time = random_levels(3), random_points(50), torch.tensor(0.6)
    arguments = converted(levels, torch.float64), points.double(), time.double(), torch.randn(50, 6).double()
    one = values_and_gradients(hexplane_grid_sample, *arguments)
    other = values_and_gradients(with_backend("reference"), *arguments)
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.gpu
def test_cuda_equals_the_reference():
    levels, points, time = random_levels(16), random_points(500), torch.tensor(0.37)
    v_values = torch.randn(500, 32, generator=torch.Generator().manual_seed(2))
    exact = values_and_gradients(with_backend("reference"), levels, points, time, v_values)
    on_gpu = [tuple(plane.cuda() for plane in level) for level in levels], points.cuda(), time.cuda(), v_values.cuda()
    for ours, theirs in zip(values_and_gradients(with_backend("auto"), *on_gpu), exact, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.detach().abs().max()))


def test_the_reference_is_exact_and_twice_differentiable():
    points, time = random_points(4).double().requires_grad_(), torch.tensor(0.3).double().requires_grad_()
    levels = converted(random_levels(2, sizes=((3, 4), (4, 3))), torch.float64)
    planes = [plane.requires_grad_() for level in levels for plane in level]
    low, high = LOW.double(), HIGH.double()

    def function(points, time, *planes):
        pairs = list(zip(planes[::2], planes[1::2], strict=True))
        return interpolate_hexplane(pairs, points, time, low, high, backend="reference")

    torch.testing.assert_close(
        function(points, time, *planes), sampled(levels, points, time, low, high), rtol=0, atol=1e-14
    )
    assert gradcheck(function, (points, time, *planes))
    assert gradgradcheck(function, (points, time, *planes))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_planes_are_indexed_by_their_axes(backend):
    """One plane at a time is made x, y, z or t itself along one of its axes, the others are 1."""
    points, time = random_points(30, margin=0), torch.tensor(0.25)
    share = torch.cat([points, time.expand(30, 1)], 1).sub(LOW) / (HIGH - LOW)
    pairs = {(0, 0): (0, 1), (0, 1): (0, 2), (0, 2): (1, 2), (1, 0): (0, 3), (1, 1): (1, 3), (1, 2): (2, 3)}
    for (kind, number), axes in pairs.items():
        for along, axis in enumerate(axes):
            level = [torch.ones(3, 4, 4, 5), torch.ones(3, 6, 4, 5)]
            rows, columns = level[kind].shape[1:3]
            ramp = torch.linspace(0, 1, rows)[:, None] if along else torch.linspace(0, 1, columns)[None]
            level[kind][number] = ramp.expand(rows, columns)[..., None]
            values = interpolate_hexplane([tuple(level)], points, time, LOW, HIGH, backend=backend)
            expected = share[:, axis, None].expand(30, 5)
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_outside_the_box_is_its_border_and_has_no_slope(backend):
    far = torch.tensor([[9.0, 1.0, 2.2], [-9.0, 1.0, 2.2], [1e30, 1.0, 2.2], [float("inf"), 1.0, 2.2]])
    edge = torch.tensor([[1.5, 1.0, 2.2], [-1.0, 1.0, 2.2], [1.5, 1.0, 2.2], [1.5, 1.0, 2.2]])
    levels, time = random_levels(5), torch.tensor(7.0, requires_grad=True)
    points = far.clone().requires_grad_()
    values = interpolate_hexplane(levels, points, time, LOW, HIGH, backend=backend)
    torch.testing.assert_close(values, interpolate_hexplane(levels, edge, torch.tensor(1.0), LOW, HIGH))
    v_points, v_time = torch.autograd.grad(values.sum(), (points, time))
    assert (v_points[:, 0] == 0).all()
    assert (v_points[:, 1:] != 0).all()
    assert v_time == 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_point_that_is_not_a_number_harms_no_plane(backend):
    points = torch.cat([torch.full((1, 3), float("nan")), random_points(9)])
    levels, time = random_levels(5), torch.tensor(0.1)
    planes = [plane.requires_grad_() for level in levels for plane in level]
    values = interpolate_hexplane(levels, points, time, LOW, HIGH, backend=backend)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(values.square().sum(), planes))


def test_any_number_of_threads_gives_the_same_bits():
    levels = random_levels(32, sizes=((9, 5), (33, 8)))
    points, time = random_points(3000), torch.tensor(0.4)
    v_values = torch.randn(3000, 64, generator=torch.Generator().manual_seed(2))
    results = []
    try:
        for threads in (1, 2):
            set_threads(threads)
            results.append(values_and_gradients(with_backend("cpu"), levels, points, time, v_values))
    finally:
        set_threads()
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_no_points_give_no_features_and_no_gradient():
    levels = random_levels(5)
    values, v_points, v_time, *v_planes = values_and_gradients(
        with_backend("cpu"), levels, torch.zeros(0, 3), torch.tensor(0.5), torch.zeros(0, 10)
    )
    assert values.shape == (0, 10)
    assert v_points.shape == (0, 3)
    assert v_time == 0
    assert all((plane == 0).all() for plane in v_planes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": []}, "one or more pairs"),
        ({"levels": [(torch.ones(3, 4, 5, 2), torch.ones(3, 4, 5, 2))]}, r"level 0: spatial must be \[3, R, R, 2\]"),
        ({"levels": [(torch.ones(3, 4, 4, 2), torch.ones(3, 1, 4, 2))]}, "level 0: temporal must be"),
        ({"levels": [*random_levels(2), *random_levels(3)]}, "level 2: spatial"),
        ({"points": torch.zeros(5, 4)}, r"points must be floating point \[M, 3\]"),
        ({"time": torch.zeros(5)}, "time must be a scalar"),
        ({"low": torch.zeros(3)}, r"low and high must be \[4\]"),
        ({"high": HIGH.double()}, "high must be torch.float32"),
        ({"backend": "numba"}, "backend must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    arguments = {"levels": random_levels(2), "points": random_points(5), "time": torch.tensor(0.0)}
    with pytest.raises(ValueError, match=message):
        interpolate_hexplane(**({**arguments, "low": LOW, "high": HIGH} | change))


def test_a_backend_that_cannot_serve_says_what_to_do():
    levels, points, time = converted(random_levels(2), torch.float64), random_points(5).double(), torch.tensor(0.0)
    with pytest.raises(UserError, match=r"float32.*\.float\(\)"):
        interpolate_hexplane(levels, points, time.double(), LOW.double(), HIGH.double())
    with pytest.raises(UserError, match="HexPlanes on cuda cannot serve tensors on cpu"):
        interpolate_hexplane(random_levels(2), points.float(), time, LOW, HIGH, backend="cuda")
