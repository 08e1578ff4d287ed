"""NeuS: where rays are sampled, within the region and behind it."""

import dataclasses
import math

import pytest
import torch
from neus_toys import ball, rays, region, small
from ngp_scenes import DISTANCE, cameras, geometry

from nfc_splat.fields.neus import Model
from nfc_splat.fields.neus_region import FARTHEST, NEAR, choose_region, joined


def test_which_region_a_scene_gets():
    box = choose_region(small(), geometry())
    assert not box.inside_out
    assert box.radius.item() == pytest.approx(1.1 * DISTANCE * math.tan(0.35), rel=1e-4)
    bounds, sphere = torch.tensor([[0.0, 0, 0], [2.0, 4.0, 1.0]]), torch.tensor([1.0, 2.0, 3.0, 0.5])
    stated = choose_region(small(), geometry(bounds=bounds))
    assert (stated.center.tolist(), stated.radius.item()) == ([1.0, 2.0, 0.5], 2.0)
    both = geometry(bounds=bounds, sphere=sphere)
    assert choose_region(small(), both).radius == 2
    assert choose_region(small(region="sphere"), both).center.tolist() == [1.0, 2.0, 3.0]
    assert choose_region(small(region_scale=3.0), geometry(sphere=sphere)).radius.item() == pytest.approx(1.5)


def test_cameras_that_look_outwards_are_in_a_hollow():
    turned = cameras()
    outwards = dataclasses.replace(turned, viewmats=torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ turned.viewmats)
    scene = geometry(cameras=outwards, has_alpha=False)
    assert choose_region(small(), scene).inside_out
    assert not choose_region(small(orientation="object"), scene).inside_out
    torch.manual_seed(0)
    model = Model.initialise(small(surroundings="auto"), scene)
    assert model.behind is None
    middle, corner = model.region.center[None], model.region.bounds[1:]
    assert model.distance(middle) > 0 > model.distance(corner)


def test_cameras_within_the_region_are_in_a_hollow():
    """Those of a room that look across it, at one point."""
    room = 2 * DISTANCE * torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    assert choose_region(small(), geometry(points=room, colors=torch.zeros(2, 3))).inside_out
    assert not choose_region(small(), geometry(points=room / 8, colors=torch.zeros(2, 3))).inside_out


@pytest.mark.parametrize("shape", ["box", "sphere"])
def test_where_rays_enter_and_leave(shape):
    where, asked = region(shape), rays()
    near, far = where.near_far(asked)
    hit = far - near > 1e-3
    assert 0.3 < hit.float().mean() <= 1
    directions = torch.nn.functional.normalize(asked.directions, dim=-1)
    for t in (near, far):
        place = where.to_local(asked.origins) + t[:, None] * directions
        if shape == "box":
            torch.testing.assert_close(place.abs().amax(-1)[hit], torch.ones(int(hit.sum())), atol=1e-4, rtol=0)
    if shape == "sphere":
        torch.testing.assert_close(far - near, torch.full((40,), 2.0))
        torch.testing.assert_close(far + near, -2 * (where.to_local(asked.origins) * directions).sum(-1))


@pytest.mark.parametrize("shape", ["box", "sphere"])
def test_rays_are_sampled_in_the_region_whatever_depths_the_scene_states(shape):
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    scenes = [geometry(bounds=box, near_far=depths) for depths in (None, (0.5, 90.0))]
    first, second = (choose_region(small(region=shape, sampler="hierarchical"), scene) for scene in scenes)
    for one, other in zip(first.near_far(rays()), second.near_far(rays()), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.parametrize("variant", ["sdfstudio", "original"])
@pytest.mark.parametrize("jitter", [False, True])
def test_hierarchical_samples_gather_at_the_surface(variant, jitter):
    torch.manual_seed(0)
    shape = "box" if variant == "sdfstudio" else "sphere"
    point = "start" if variant == "sdfstudio" else "middle"
    where, asked = region(shape, variant, section_point=point), rays(200)
    samples = where.sections(asked, ball, jitter)
    assert len(samples) == 200 * 128
    length = asked.directions.norm(dim=-1, keepdim=True) / where.radius
    t, width = samples.t.view(200, 128) * length, samples.widths.view(200, 128) / where.radius
    assert (width >= 0).all()
    torch.testing.assert_close(t[:, :-1] + width[:, :-1] / 2, t[:, 1:] - width[:, 1:] / 2, atol=1e-4, rtol=0)
    local = where.to_local(samples.positions)
    middle = where.to_local(
        samples.rays.origins[samples.ray] + samples.t[:, None] * samples.rays.directions[samples.ray]
    )
    away = (local - middle).norm(dim=-1).view(200, 128)
    torch.testing.assert_close(away, width / 2 if point == "start" else torch.zeros_like(away), atol=1e-4, rtol=0)
    hit = (ball(local).view(200, 128) < 0).any(1)
    near = (ball(local).view(200, 128)[hit].abs() < 0.05).sum(1)
    assert hit.sum() > 20
    assert near.float().mean() > 40


def test_jitter_of_sections_is_one_draw_per_ray():
    torch.manual_seed(0)
    where = region(fine=0)
    still, moved = (where.sections(rays(), ball, jitter).t.view(40, 64) for jitter in (False, True))
    near, far = where.near_far(rays())
    bin_width = (far - near) * where.radius / rays().directions.norm(dim=-1) / 64
    shift = ((moved - still) / bin_width[:, None])[:, 1:-1]
    torch.testing.assert_close(shift, shift[:, :1].expand(-1, 62), atol=2e-2, rtol=0)
    assert 0.3 < shift[:, 0].max() <= 0.5
    assert -0.5 <= shift[:, 0].min() < -0.3


@pytest.mark.parametrize("kind", ["contracted", "sphere"])
def test_samples_behind_the_region(kind):
    where, asked = region(), rays(10)
    samples = where.behind(asked, kind, jitter=False)
    length = asked.directions.norm(dim=-1, keepdim=True) / where.radius
    t, width = samples.t.view(10, 6) * length, samples.widths.view(10, 6) / where.radius
    _, far = where.near_far(asked)
    torch.testing.assert_close(t[:, :-1] + width[:, :-1] / 2, t[:, 1:] - width[:, 1:] / 2, rtol=1e-3, atol=1e-4)
    assert (t > far[:, None]).all()
    if kind == "contracted":
        torch.testing.assert_close(t[:, 0] - width[:, 0] / 2, far, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(t[:, -1] + width[:, -1] / 2, torch.full((10,), FARTHEST), rtol=1e-3, atol=0)
    else:
        start = t - width / 2
        torch.testing.assert_close(start[:, 0], far / (1 - 1 / 7) + 1 / 64)
        torch.testing.assert_close(start[:, -1], far / 1e-3 + 1 / 64, rtol=1e-3, atol=0)


def test_samples_of_two_kinds_are_joined_ray_by_ray():
    where, asked = region(), rays(10)
    near, far = (
        where.steps(asked, torch.ones(4, 4, 4, dtype=torch.bool), 30.0, False),
        where.behind(asked, "contracted", False),
    )
    samples, outside = joined(near, far)
    assert outside.sum() == len(far) == 60
    assert (samples.ray.diff() >= 0).all()
    assert samples.offsets.diff().tolist() == [a + 6 for a in near.offsets.diff().tolist()]
    same = samples.ray[1:] == samples.ray[:-1]
    assert (samples.t.diff()[same] > 0).all()
    torch.testing.assert_close(samples.positions[~outside], near.positions)
    torch.testing.assert_close(samples.widths[outside], far.widths)
    assert NEAR > 0
