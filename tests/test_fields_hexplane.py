"""The HexPlane module: its box, how it starts, what smooths it. And the networks that decode it."""

import pytest
import torch

from nfc_splat.fields.deformation import Deformation
from nfc_splat.fields.hexplane import HexPlane

SIZES = {"means": 3, "scales": 3, "quats": 4}


def planes(points=None, earliest=-1.0, channels=5, nodes=(4, 8), rows=6):
    points = torch.rand(50, 3) * torch.tensor([1.0, 2.0, 4.0]) if points is None else points
    return HexPlane.initialise(points, earliest, channels=channels, nodes=nodes, rows=rows)


def test_the_box_is_that_of_the_points_and_the_published_times_reach_back_to_minus_one():
    points = torch.rand(50, 3) - 0.3
    made = planes(points)
    assert made.low.tolist() == pytest.approx([*points.amin(0).tolist(), -1])
    assert made.high.tolist() == pytest.approx([*points.amax(0).tolist(), 1])
    assert planes(points, earliest=0.0).low[3] == 0


def test_points_in_one_plane_have_a_box_all_the_same():
    points = torch.rand(50, 3)
    points[:, 1] = 3.0
    made = planes(points)
    assert made.low[1] < 3 < made.high[1]
    assert made(points, torch.tensor(0.5)).isfinite().all()


def test_planes_start_at_random_in_space_and_at_one_in_time():
    made = planes(nodes=(4, 8), rows=6, channels=5)
    assert [tuple(plane.shape) for plane in made.spatial] == [(3, 4, 4, 5), (3, 8, 8, 5)]
    # levels differ in space alone
    assert [tuple(plane.shape) for plane in made.temporal] == [(3, 6, 4, 5), (3, 6, 8, 5)]
    for plane in made.spatial:
        assert 0.1 <= plane.min() < 0.15
        assert 0.45 < plane.max() <= 0.5
    assert all((plane == 1).all() for plane in made.temporal)


def test_only_half_of_the_published_time_planes_is_ever_read():
    used = {}
    for name, earliest in (("published", -1.0), ("normalized", 0.0)):
        made = planes(earliest=earliest, rows=8, nodes=(4,))
        total = sum(made(torch.rand(20, 3), torch.tensor(time)).sum() for time in torch.linspace(0, 1, 40).tolist())
        (gradient,) = torch.autograd.grad(total, made.temporal[0])
        used[name] = (gradient != 0).flatten(2).any(2).any(0).tolist()
    assert used["published"] == [False] * 3 + [True] * 5
    assert all(used["normalized"])


def test_the_published_smoothness_is_of_second_differences_along_rows_alone():
    made = planes()
    expected = 0.0
    for stack in made.spatial:
        for plane in stack:  # [H, W, C]
            bend = plane[2:] - 2 * plane[1:-1] + plane[:-2]
            expected = expected + bend.square().mean()
    torch.testing.assert_close(made.space_roughness("published"), expected)
    with torch.no_grad():
        for stack in made.spatial:
            stack.copy_(torch.rand(1, 1, stack.shape[2], 1).expand_as(stack))  # rough along columns: x in (x, y)
    assert made.space_roughness("published") == 0
    assert made.space_roughness("total-variation") > 0.01


def test_total_variation_is_of_first_differences_along_both_axes():
    made = planes(nodes=(3,))
    with torch.no_grad():
        made.spatial[0].copy_(2.0 * torch.arange(3)[:, None, None] + 5.0 * torch.arange(3)[:, None])
    assert made.space_roughness("total-variation").item() == pytest.approx(3 * (4 + 25))
    assert made.space_roughness("published").item() == pytest.approx(0)


def test_time_terms_are_sums_of_means():
    made = planes(rows=4, nodes=(4, 8))
    assert made.time_roughness() == made.time_dependence() == 0
    with torch.no_grad():
        made.temporal[1][2] = torch.tensor([1.0, 1.0, 4.0, 1.0])[:, None, None]  # (z, t) of the second level
    # second differences 3 and -6; distances from one 0, 0, 3, 0
    assert made.time_roughness().item() == pytest.approx((9 + 36) / 2)
    assert made.time_dependence().item() == pytest.approx(3 / 4)


def test_too_few_rows_have_no_second_difference():
    assert planes(rows=2, nodes=(2,)).time_roughness() == 0


def deformation(zero_heads=False, sizes=SIZES):
    made = Deformation(planes(), 8, sizes)
    made.initialise(zero_heads)
    return made


def test_published_heads_do_not_start_at_zero():
    changes = deformation()(torch.rand(30, 3), torch.tensor(0.5))
    assert {name: tuple(change.shape) for name, change in changes.items()} == {
        "means": (30, 3),
        "scales": (30, 3),
        "quats": (30, 4),
    }
    assert all(change.abs().max() > 0.01 for change in changes.values())


def test_zero_heads_start_without_deformation_but_learn():
    made = deformation(zero_heads=True)
    changes = made(torch.rand(30, 3), torch.tensor(0.5))
    assert all((change == 0).all() for change in changes.values())
    sum(change.sum() for change in changes.values()).backward()
    assert all(head.weight.grad.abs().max() > 0 for head in made.heads.values())


def test_weights_are_xavier_uniform():
    made = Deformation(planes(), 64, SIZES)
    made.initialise(False)
    for name, layer in (("trunk", made.trunk), ("hidden", made.hidden["means"]), ("head", made.heads["quats"])):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound, name


def test_the_networks_are_those_of_the_paper():
    """Layer by layer in float64, and the same in float32 by the compiled kernel."""
    made = deformation()
    points, time = torch.rand(40, 3), torch.tensor(0.3)
    drawn = made(points, time)
    exact = deformation().double()
    exact.load_state_dict(made.state_dict())
    features = exact.planes(points.double(), time.double(), "reference")
    trunk = exact.trunk(features)
    for name in SIZES:
        hidden = exact.hidden[name](trunk.relu())
        torch.testing.assert_close(drawn[name].double(), exact.heads[name](hidden.relu()), rtol=1e-4, atol=1e-6)


def test_a_deformation_is_rebuilt_from_its_tensors():
    made = deformation(sizes={"means": 3, "colors": 27})
    again = Deformation.from_tensors(made.state_dict())
    assert list(again.heads) == ["means", "colors"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    points, time = torch.rand(10, 3), torch.tensor(0.8)
    for name, change in made(points, time).items():
        assert torch.equal(change, again(points, time)[name])


def test_networks_and_planes_are_told_apart():
    made = deformation()
    total = sum(1 for _ in made.parameters())
    assert len(made.network_parameters()) == total - 4 == 2 + 4 * len(SIZES)
