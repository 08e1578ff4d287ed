"""Near and far of scenes whose files do not state them."""

import math

import pytest
import torch

from nfc_splat.cameras import Cameras
from nfc_splat.errors import UserError
from nfc_splat.fields.depth_range import depth_range, focus_distances
from nfc_splat.fields.marched import probe_rays
from nfc_splat.fields.recipe import SceneGeometry


def ring(distance, *, outward=False, count=12):
    """Cameras on a circle about the origin that look at it, or away from it."""
    viewmats = []
    for index in range(count):
        angle = 2 * math.pi * index / count
        forward = -torch.tensor([math.cos(angle), math.sin(angle), 0.2]) / math.sqrt(1.04)
        center = -distance * forward
        forward = -forward if outward else forward
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0, 1])), dim=0)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
        viewmat = torch.eye(4)
        viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ center
        viewmats.append(viewmat)
    Ks = torch.tensor([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    return Cameras.pinhole(torch.stack(viewmats), Ks, 100, 100)


def test_what_the_files_state_goes_first():
    assert depth_range(SceneGeometry(ring(4.0), None, None, near_far=(0.3, 7.0))) == (0.3, 7.0)


def test_cameras_about_an_object_give_nerfs_own_range():
    assert depth_range(SceneGeometry(ring(4.0), None, None)) == pytest.approx((2.0, 6.0), rel=1e-5)


def test_cameras_that_look_outwards_have_no_focus():
    geometry = SceneGeometry(ring(1.0, outward=True), None, None)
    assert focus_distances(geometry) is None
    near, far = depth_range(geometry)
    assert 0 < near < 0.1
    assert 4 < far < 20


def test_parallel_cameras_have_no_focus():
    viewmats = torch.eye(4).repeat(5, 1, 1)
    viewmats[:, 0, 3] = torch.arange(5.0)
    cameras = Cameras.pinhole(viewmats, torch.eye(3), 10, 10)
    near, far = depth_range(SceneGeometry(cameras, None, None))
    assert 0 < near < far < math.inf


@pytest.mark.parametrize("count", [1, 5])
def test_a_camera_that_only_turns_says_nothing_of_the_size(count):
    cameras = ring(4.0, count=count)
    cameras.viewmats[:, :3, 3] = -cameras.viewmats[:, :3, :3] @ torch.tensor([3.0, -2.0, 5.0])
    with pytest.raises(UserError, match="nothing says how large the scene is"):
        depth_range(SceneGeometry(cameras, None, None))
    assert depth_range(SceneGeometry(cameras, None, None, near_far=(0.5, 2.0))) == (0.5, 2.0)


def test_near_is_never_0():
    assert depth_range(SceneGeometry(ring(4.0), None, None, near_far=(0.0, 8.0))) == (0.008, 8.0)


def test_points_in_view_give_the_range_without_outliers():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 3, generator=generator) - 0.5
    points[0] = 1e6
    near, far = depth_range(SceneGeometry(ring(4.0), points, None))
    assert 1.4 < near < 1.9
    assert 6.2 < far < 7.5


def test_points_that_no_camera_sees_do_not_break_it():
    points = torch.full((3, 3), 1e3)
    near, far = depth_range(SceneGeometry(ring(1.0), points, None))
    assert 0 < near < far < math.inf


def test_probe_rays_cover_the_images_of_the_cameras():
    cameras = ring(4.0, count=3)
    rays = probe_rays(cameras, most=2)
    assert rays.origins.shape == (2 * 256, 3)
    pixels, depths = cameras.project(rays.origins + 2 * rays.directions)
    assert torch.allclose(depths[0, :256], torch.full((256,), 2.0), atol=1e-4)
    assert pixels[0, :256].min() < 5
    assert pixels[0, :256].max() > 95
    assert torch.equal(rays.origins[256], cameras.centers[2])
