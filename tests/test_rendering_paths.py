"""Camera paths: rigid, closed, smooth, upright, and looking where they should."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfc_splat.cameras import Cameras
from nfc_splat.rendering.paths import (
    PATHS,
    camera_path,
    camera_to_world,
    focus_point,
    interpolate,
    look_at,
    orbit,
    spiral,
    up_direction,
)

FOCUS = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def ring(count=24, radius=4.0, height=2.0, arc=2 * math.pi, start=0.0):
    """Cameras around `FOCUS`, z up, looking at it."""
    angles = start + arc * torch.arange(count, dtype=torch.float64) / count
    centers = torch.stack([radius * angles.cos(), radius * angles.sin(), torch.full_like(angles, height)], -1) + FOCUS
    return look_at(centers, FOCUS.expand_as(centers), UP)


def forward_facing(count=20):
    """Cameras on a wall, looking along x at different depths."""
    generator = torch.Generator().manual_seed(3)
    centers = 0.5 * torch.randn(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 1.0, 0.6])
    return look_at(centers, centers + torch.tensor([5.0, 0, 0], dtype=torch.float64), UP)


def inside_out(count=16):
    """Cameras on a small ring that look away from its middle, as in a room."""
    poses = ring(count, radius=1.0, height=0.0)
    centers = poses[:, :3, 3]
    return look_at(centers, 2 * centers - FOCUS, UP)


SCENES = {"ring": ring, "forward": forward_facing, "room": inside_out, "arc": lambda: ring(10, arc=1.5)}


def as_cameras(poses, size=(40, 30), **fields):
    K = torch.tensor([[50.0, 0, 21], [0, 50.0, 14], [0, 0, 1]])
    viewmats = torch.linalg.inv(poses).float()
    count = len(poses)
    return Cameras(viewmats, K.repeat(count, 1, 1), torch.tensor(size).repeat(count, 1), **fields)


def steps(poses):
    """Distance and angle between neighbouring frames, the last and the first included."""
    after = poses.roll(-1, 0)
    distance = (after[:, :3, 3] - poses[:, :3, 3]).norm(dim=-1)
    relative = poses[:, :3, :3].transpose(1, 2) @ after[:, :3, :3]
    cosine = (relative.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    return distance, cosine.clamp(-1, 1).acos()


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("make", [orbit, interpolate, spiral])
def test_poses_are_rigid_and_the_path_is_closed_and_smooth(scene, make):
    poses = make(SCENES[scene](), 240)
    rotation = poses[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), eye, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(240, dtype=torch.float64))
    assert torch.equal(poses[:, 3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(240, 4))
    distance, angle = steps(poses)
    assert distance.max() < 0.25
    assert angle.max() < math.radians(12)


@pytest.mark.parametrize("make", [orbit, interpolate, spiral])
def test_twice_the_frames_are_half_the_steps(make):
    """The path is a curve that does not depend on how often it is sampled: no jump is hidden between frames."""
    poses = ring()
    # interpolate takes more keyframes for more frames; compare it on few cameras, where all are used.
    poses = poses[::4] if make is interpolate else poses
    coarse, fine = make(poses, 120), make(poses, 240)
    torch.testing.assert_close(fine[::2], coarse, atol=1e-9, rtol=0)
    assert steps(fine)[0].max() < 0.6 * steps(coarse)[0].max()
    assert steps(fine)[1].max() < 0.6 * steps(coarse)[1].max()


def test_focus_of_a_ring_is_its_target():
    torch.testing.assert_close(focus_point(ring()), FOCUS, atol=1e-5, rtol=0)


def test_focus_of_parallel_axes_is_ahead():
    poses = forward_facing()
    focus = focus_point(poses)
    middle = poses[:, :3, 3].mean(0)
    assert (focus - middle)[0] > 0
    torch.testing.assert_close((focus - middle)[1:], torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("arc", [0.8, 2.0, 2 * math.pi])
def test_up_is_found_though_every_camera_looks_down(arc):
    """The mean of the cameras' own up axes leans forward unless they stand all around; the right axes do not."""
    assert up_direction(ring(arc=arc)) @ UP > 0.9999


@pytest.mark.parametrize("height", [0.1, 2.0])
@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_up_is_found_though_the_cameras_lie_on_their_side(turn, height):
    poses = ring(height=height)
    quarter = torch.tensor([[0.0, -turn, 0], [turn, 0, 0], [0, 0, 1]], dtype=torch.float64)
    poses[:, :3, :3] = poses[:, :3, :3] @ quarter
    assert up_direction(poses) @ UP > 0.9999


def test_up_survives_unsteady_hands():
    poses = ring(40)
    roll = 0.08 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wobble = torch.eye(3, dtype=torch.float64).repeat(40, 1, 1)
    wobble[:, 0, 0] = wobble[:, 1, 1] = roll.cos()
    wobble[:, 0, 1], wobble[:, 1, 0] = -roll.sin(), roll.sin()
    poses[:, :3, :3] = poses[:, :3, :3] @ wobble
    assert up_direction(poses) @ UP > 0.999


def test_up_of_cameras_that_look_the_same_way_is_their_own():
    poses = forward_facing()
    torch.testing.assert_close(up_direction(poses), -poses[:, :3, 1].mean(0))


def test_orbit_looks_at_the_focus_from_the_cameras_distance_and_height():
    path = orbit(ring(), 50)
    to_focus = FOCUS - path[:, :3, 3]
    torch.testing.assert_close(to_focus / to_focus.norm(dim=-1, keepdim=True), path[:, :3, 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(path[:, 2, 3], torch.full((50,), 3.0, dtype=torch.float64), atol=1e-4, rtol=0)
    horizontal = to_focus[:, :2].norm(dim=-1)
    torch.testing.assert_close(horizontal, torch.full_like(horizontal, 4.0), atol=1e-3, rtol=0)
    assert (path[:, :3, 0] @ UP).abs().max() < 1e-4  # upright: right is horizontal
    assert (-path[:, :3, 1] @ UP).min() > 0


def test_orbit_goes_all_the_way_round_a_ring():
    path = orbit(ring(), 36)
    azimuths = torch.atan2(path[:, 1, 3] - FOCUS[1], path[:, 0, 3] - FOCUS[0]).sort().values
    assert (azimuths[1:] - azimuths[:-1]).max() < math.radians(11)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_orbit_of_few_cameras_all_round_goes_all_round(count):
    path = orbit(ring(count), 36)
    azimuths = torch.atan2(path[:, 1, 3] - FOCUS[1], path[:, 0, 3] - FOCUS[0]).sort().values
    assert (azimuths[1:] - azimuths[:-1]).max() < math.radians(11)


def test_orbit_stays_on_the_side_that_was_photographed():
    poses = ring(12, arc=1.2, start=0.5)
    path = orbit(poses, 60)
    azimuths = torch.atan2(path[:, 1, 3] - FOCUS[1], path[:, 0, 3] - FOCUS[0])
    assert azimuths.min() >= 0.5 - 1e-3
    assert azimuths.max() <= 1.7 + 1e-3
    assert azimuths.max() - azimuths.min() > 1.0


def test_cameras_above_do_not_hide_that_a_side_was_not_photographed():
    above = ring(24, radius=0.5, height=5.0)
    path = orbit(torch.cat([ring(30, arc=1.2), above]), 60)
    azimuths = torch.atan2(path[:, 1, 3] - FOCUS[1], path[:, 0, 3] - FOCUS[0])
    assert azimuths.max() - azimuths.min() < 1.3


def test_orbit_in_a_room_looks_out():
    path = orbit(inside_out(), 40)
    outwards = path[:, :3, 3] - FOCUS
    assert torch.linalg.vecdot(path[:, :3, 2], outwards).min() > 0


def test_spiral_keeps_one_point_in_the_middle_and_stays_near_the_cameras():
    poses = forward_facing()
    path = spiral(poses, 60)
    assert path[:, :3, 2].mean(0)[0] > 0.9
    assert focus_point(path)[0] > poses[:, 0, 3].max()
    reach = poses[:, :3, 3].abs().max() + 0.1
    assert path[:, :3, 3].abs().max() < reach
    assert path[:, :3, 3].std(0)[1] > 0.05


def test_interpolation_passes_through_its_cameras():
    poses = ring(6)
    path = interpolate(poses, 600)
    for pose in poses:
        error = (path - pose).abs().amax((1, 2)).min()
        assert error < 0.03
    # The tour of a ring goes round it once.
    distance, _ = steps(path)
    assert distance.sum() < 1.1 * 2 * math.pi * 4


def test_interpolation_does_not_depend_on_the_order_of_the_cameras_being_good():
    shuffled = ring(12)[torch.tensor([0, 7, 3, 11, 5, 1, 9, 2, 8, 4, 10, 6])]
    assert steps(interpolate(shuffled, 300))[0].sum() < 1.1 * 2 * math.pi * 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from(PATHS))
def test_any_cameras_give_rigid_poses(count, frames, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(matrices)
    rotation = rotation * torch.linalg.det(rotation).sign()[:, None, None]
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = rotation
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    path = camera_to_world(camera_path(kind, as_cameras(poses), frames, 32, 24))
    identity = path[:, :3, :3] @ path[:, :3, :3].transpose(1, 2)
    torch.testing.assert_close(identity, torch.eye(3, dtype=torch.float64).expand_as(identity), atol=1e-5, rtol=0)
    assert torch.isfinite(path).all()
    assert len(path) == frames


@pytest.mark.parametrize("kind", PATHS)
def test_cameras_all_in_one_place(kind):
    path = camera_path(kind, as_cameras(ring(1).repeat(4, 1, 1)), 8, 20, 10)
    assert torch.isfinite(path.viewmats).all()


def test_the_field_of_view_is_kept_and_times_run():
    cameras = as_cameras(ring(5), times=torch.rand(5), near=0.2, far=9.0)
    path = camera_path("orbit", cameras, 11, 160, 90)
    assert (path.width, path.height) == (160, 90)
    assert path.Ks[0, 1, 1] / 90 == pytest.approx(50 / 30)
    assert path.Ks[0, 0, 0] == path.Ks[0, 1, 1]
    assert path.Ks[0, :2, 2].tolist() == [80, 45]
    torch.testing.assert_close(path.times, torch.linspace(0, 1, 11))
    assert (path.near, path.far, path.model) == (0.2, 9.0, "pinhole")
    assert camera_path("orbit", as_cameras(ring(5)), 3, 8, 8).times is None
