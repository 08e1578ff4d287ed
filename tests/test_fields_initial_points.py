"""Where Gaussians start: the neighbour search against brute force, and random points where the cameras look."""

import logging
import math

import pytest
import torch
from splat_toys import orbit, pinhole_cameras

from nfc_splat.fields.initial_points import initial_points, neighbor_distance, random_points, viewing_distance
from nfc_splat.fields.recipe import SceneGeometry


def brute_force(points, k=3):
    squared = (points[:, None] - points[None]).square().sum(-1)
    squared.fill_diagonal_(torch.inf)
    return squared.topk(min(k, len(points) - 1), largest=False).values.mean(-1).sqrt()


def cloud(kind, count):
    """Scattered, on a surface, along a line, on a lattice with ties, with far outliers, in two clumps, coincident."""
    points = torch.rand(count, 3)
    if kind == "surface":
        points = torch.nn.functional.normalize(points - 0.5, dim=-1)
    if kind == "line":
        points[:, 1:] = 0.25
    if kind == "lattice":
        points = (8 * points).round()
    if kind == "outliers":
        points[::50] *= 10.0 ** torch.randint(1, 6, (len(points[::50]), 1))
    if kind == "clumps":
        points[::2] = 1e-3 * points[::2] + 7.0
    if kind == "coincident":
        points[:] = 1.5
    return points


@pytest.mark.parametrize("kind", ["scattered", "surface", "line", "lattice", "outliers", "clumps", "coincident"])
def test_neighbor_distance_is_exact(kind):
    points = cloud(kind, 1500)
    torch.testing.assert_close(neighbor_distance(points), brute_force(points), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 200])
def test_neighbor_distance_of_few_points(count):
    points = torch.randn(count, 3)
    torch.testing.assert_close(neighbor_distance(points), brute_force(points), rtol=1e-5, atol=1e-7)


def test_neighbor_distance_of_one_point_is_zero():
    assert neighbor_distance(torch.zeros(1, 3)).tolist() == [0.0]


def test_neighbor_distance_of_a_whole_capture():
    count = 40_000
    points = cloud("scattered", count)
    distances = neighbor_distance(points)
    some = torch.arange(0, count, 400)
    squared = (points[some, None] - points[None]).square().sum(-1)
    squared[torch.arange(len(some)), some] = torch.inf
    expected = squared.topk(3, largest=False).values.mean(-1).sqrt()
    torch.testing.assert_close(distances[some], expected, rtol=1e-5, atol=1e-7)


def dome(count=60):
    """The usual synthetic rig: cameras on the upper half of a sphere of radius 4, 40 degrees wide."""
    up = torch.linspace(0.05, 0.95, count)
    around = torch.arange(count) * 2.399963
    flat = (1 - up**2).sqrt()
    return pinhole_cameras(
        4 * torch.stack([flat * around.cos(), flat * around.sin(), up], dim=-1), torch.zeros(count, 3)
    )


def room(count=60):
    """Cameras near the middle of a room, each looking outwards."""
    around = torch.arange(count) * (2 * math.pi / count)
    outwards = torch.stack([around.cos(), around.sin(), torch.full((count,), -0.1)], dim=-1)
    centers = outwards * torch.tensor([1.0, 0.7, 0.2])
    return pinhole_cameras(centers, centers + outwards, field_of_view=70.0)


def test_an_object_is_looked_for_where_the_cameras_look():
    cameras = dome()
    assert viewing_distance(cameras) == pytest.approx(4.0, rel=1e-3)
    points = random_points(cameras, 4000)
    assert points.shape == (4000, 3)
    # the ball that fills every image has radius 4 sin(20 degrees) = 1.37
    distance = points.norm(dim=-1)
    assert (distance < 1.37).float().mean() > 0.6
    assert distance.max() < 2.5
    assert points.mean(0).norm() < 0.3
    # and it is filled, rather than clustered: octants hold similar numbers
    octant = ((points > 0) * torch.tensor([1, 2, 4])).sum(-1).bincount(minlength=8)
    assert octant.min() > 0.5 * 4000 / 8


def test_a_room_is_looked_for_around_the_cameras():
    cameras = room()
    points = random_points(cameras, 4000)
    pixels, depths = cameras.project(points)
    seen = (depths > 0) & (pixels > 0).all(-1) & (pixels < cameras.sizes[:, None]).all(-1)
    assert (seen.sum(0) >= 3).all()
    horizontal = points[:, :2].norm(dim=-1)
    assert horizontal.median() > 1.0  # outside the ring of cameras
    quadrant = ((points[:, :2] > 0) * torch.tensor([1, 2])).sum(-1).bincount(minlength=4)
    assert quadrant.min() > 0.6 * 4000 / 4
    assert horizontal.max() < 10 * SceneGeometry(cameras, None, None).extent


def test_the_search_follows_the_cameras_anywhere_and_at_any_scale():
    cameras = dome()
    shift, scale = torch.tensor([100.0, -50.0, 7.0]), 30.0
    centers = cameras.centers * scale + shift
    moved = pinhole_cameras(centers, shift.expand_as(centers))
    points = (random_points(moved, 2000) - shift) / scale
    assert (points.norm(dim=-1) < 1.6).float().mean() > 0.75


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_cameras_are_enough_to_start(count):
    points = random_points(orbit(count), 100)
    assert points.shape == (100, 3)
    assert points.isfinite().all()


def test_parallel_cameras_still_give_points():
    centers = torch.stack([torch.linspace(-2, 2, 10), torch.zeros(10), torch.zeros(10)], dim=-1)
    cameras = pinhole_cameras(centers, centers + torch.tensor([0.0, 5.0, 0.0]))
    points = random_points(cameras, 500)
    assert points.isfinite().all()
    assert (points[:, 1] > 0).all()  # in front


def test_scene_points_are_used_as_they_are():
    points, colors = torch.rand(20, 3), torch.rand(20, 3)
    found = initial_points(SceneGeometry(orbit(), points, colors), 500, 1000)
    assert torch.equal(found[0], points)
    assert torch.equal(found[1], colors)
    assert torch.equal(initial_points(SceneGeometry(orbit(), points, None), 500, 1000)[1], torch.full((20, 3), 0.5))


def test_a_scene_without_points_says_so(caplog):
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        points, colors = initial_points(SceneGeometry(orbit(), None, None), 50, 1000)
    assert points.shape == (50, 3)
    assert torch.equal(colors, torch.full((50, 3), 0.5))
    assert "no points" in caplog.text


def test_published_points_fill_the_cube_that_the_cameras_look_at(caplog):
    """Cameras 4 units from the origin, as those of the published scenes; and scenes of other units and places."""
    cameras = orbit(12)
    points, colors = initial_points(SceneGeometry(cameras, None, None), 2000, 100_000, 1.3)
    assert points.shape == (2000, 3)
    torch.testing.assert_close(points.aminmax(dim=0).max, torch.full((3,), 1.3), atol=0.01, rtol=0)
    torch.testing.assert_close(points.aminmax(dim=0).min, torch.full((3,), -1.3), atol=0.01, rtol=0)
    torch.testing.assert_close(points.std(0), torch.full((3,), 1.3 / math.sqrt(3)), atol=0.04, rtol=0)
    assert (colors == 0.5).all()
    assert "starting from 2000 random ones within 1.3 of the origin" in caplog.text
    away = torch.tensor([30.0, 0.0, 0.0])
    elsewhere = pinhole_cameras(cameras.centers + away, away.expand(12, 3))
    for others, cube in ((orbit(12, radius=40.0), 1.3), (orbit(12, radius=1.0), 1.7), (elsewhere, 1.3), (cameras, 0.0)):
        caplog.clear()
        initial_points(SceneGeometry(others, None, None), 50, 100_000, cube)
        assert "starting from 50 random ones where the cameras look" in caplog.text


def test_too_many_points_are_thinned_to_leave_room_for_more(caplog):
    points = torch.arange(300.0).view(100, 3)
    with caplog.at_level(logging.WARNING, "nfc_splat"):
        found, colors = initial_points(SceneGeometry(orbit(), points, points / 300), 500, 60)
    assert len(found) == 30
    assert torch.equal(found / 300, colors)
    assert len(found.unique(dim=0)) == 30
    assert "half of --max-primitives" in caplog.text
