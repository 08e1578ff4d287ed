"""Depth from random places: known rooms, misses, unseen points, the published frame of places and pixels."""

import numpy as np
import pytest
from geometry_toys import box_mesh, joined, moved, open3d_or_skip

from nfc_splat.errors import UserError
from nfc_splat.eval import depth_views
from nfc_splat.eval.depth_views import cast_depth, depth_l1, random_poses
from nfc_splat.eval.surface import Surface, keep_vertices


def test_equal_rooms_have_no_difference_and_a_scaled_one_has_its_share():
    room = moved(box_mesh(), [-3, -2.5, -1.5])
    assert depth_l1(room, room, views=3) == 0
    poses = random_poses(room, 20, 0)
    scenes = [depth_views._scene(surface) for surface in (room, Surface(room.vertices * 1.1, room.faces))]
    expected = np.mean([np.abs(cast_depth(scenes[0], pose) - cast_depth(scenes[1], pose)).mean() for pose in poses])
    value = depth_l1(Surface(room.vertices * 1.1, room.faces), room, views=20)
    assert value == pytest.approx(expected)
    assert 0.1 < value < 0.4


def test_depth_is_along_z_and_a_miss_is_zero():
    open3d_or_skip()
    wall = moved(box_mesh((0.1, 40, 40)), [2, -20, -20])
    pose = depth_views._looking(np.zeros(3), np.array([1.0, 0, 0]))
    scene = depth_views._scene(wall)
    np.testing.assert_allclose(cast_depth(scene, pose), 2, atol=1e-4)
    away = depth_views._looking(np.zeros(3), np.array([-1.0, 0, 0]))
    assert not cast_depth(scene, away).any()
    far = depth_views._scene(moved(wall, [19, 0, 0]))
    assert not cast_depth(far, pose).any()


def test_a_hole_counts_with_the_depth_behind_it():
    room = moved(box_mesh(divisions=2), [-3, -2.5, -1.5])
    open_room = keep_vertices(room, room.vertices[:, 0] < 2.9)
    assert depth_l1(open_room, room, views=30) > 0.2


def test_places_are_in_the_shrunk_and_lifted_box():
    room = moved(box_mesh(), [-3, -2.5, -1.5])
    poses = random_poses(room, 400, 1)
    places = poses[:, :3, 3]
    np.testing.assert_allclose(np.abs(places - [0, 0, 0.4]).max(0), [0.7 * 3, 0.7 * 2.5, 0.3 * 1.5], rtol=0.03)
    rotations = poses[:, :3, :3]
    np.testing.assert_allclose(rotations.mT @ rotations, np.tile(np.eye(3), (400, 1, 1)), atol=1e-12)
    assert np.linalg.det(rotations).min() > 0.99
    assert (rotations[:, 2, 1] <= 1e-9).all()  # the image's down is never up
    assert np.array_equal(poses, random_poses(room, 400, 1))


def test_views_that_hold_unseen_points_are_drawn_anew(monkeypatch):
    room = moved(box_mesh(), [-3, -2.5, -1.5])
    corner = np.array([[3.0, 2.5, 1.5]])
    poses = random_poses(room, 100, 0, corner)
    assert not any(depth_views._any_in_view(corner, pose) for pose in poses)
    assert any(depth_views._any_in_view(corner, pose) for pose in random_poses(room, 100, 0))
    everywhere = np.random.default_rng(0).normal(size=(4000, 3)) * 5
    monkeypatch.setattr(depth_views, "_TRIES", 50)
    with pytest.raises(UserError, match="hold no unseen point"):
        random_poses(room, 5, 0, everywhere)


def test_clouds_have_no_depth():
    room = box_mesh()
    with pytest.raises(ValueError, match="two meshes"):
        depth_l1(Surface(room.vertices), room)
    with pytest.raises(ValueError, match="two meshes"):
        depth_l1(joined(room), Surface(room.vertices, room.faces[:0]))
