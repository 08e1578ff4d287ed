"""NICE-SLAM's Replica: frames go by number, intrinsics come from several places, depth gives initial points."""

import json
import shutil

import numpy as np
import pytest
import torch
from data_scenes import COUNT, FOCAL, HEIGHT, WIDTH, write_png, write_replica
from PIL import Image

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.errors import UserError


@pytest.fixture
def root(known, tmp_path):
    write_replica(tmp_path / "scene", known)
    return tmp_path / "scene"


def test_frames_are_paired_by_number(root, known):
    """With frame 3 gone, frame 7 still has pose 7."""
    (root / "results" / "frame000003.png").unlink()
    scene = load_scene(root, undistort=True)
    train = scene.splits["train"]
    assert any("1 of 12 images have no file: 'results/frame000003.jpg'" in notice for notice in scene.notices)
    at = train.names.index("results/frame000007.png")
    torch.testing.assert_close(
        train.cameras.viewmats[at], torch.from_numpy(np.linalg.inv(known.poses[7])).float(), atol=1e-6, rtol=0
    )


def test_every_tenth_frame_present_is_for_testing(root):
    (root / "results" / "frame000000.png").unlink()
    scene = load_scene(root, undistort=True)
    assert scene.splits["test"].names == ["results/frame000001.png", "results/frame000011.png"]


def test_images_beyond_the_trajectory_are_left_out_or_refused(root):
    lines = (root / "traj.txt").read_text().splitlines()
    (root / "traj.txt").write_text("\n".join(lines[:7]))
    scene = load_scene(root, undistort=True)
    assert sum(map(len, scene.splits.values())) == 7
    assert any("beyond the end of traj.txt" in n and "'frame000007.png'" in n for n in scene.notices)
    (root / "traj.txt").write_text("\n".join(lines[:5]))
    with pytest.raises(UserError, match=r"traj\.txt: 5 poses, but 7 of 12 images have a larger number"):
        load_scene(root, undistort=True)
    assert len(load_scene(root, DataConfig(allow_missing=True), undistort=True).splits["train"]) == 4


def test_parameters_are_found_above_flat_or_under_another_name(root):
    flat = {"w": WIDTH, "h": HEIGHT, "fx": 50.0, "fy": 51.0, "cx": 30.0, "cy": 20.0, "png_depth_scale": 123.0}
    (root / "cam_params.json").unlink()
    (root.parent / "cam_params.json").write_text(json.dumps(flat))
    K = load_scene(root, undistort=True).splits["train"].cameras.Ks[0]
    assert K.tolist() == [[50, 0, 30.5], [0, 51, 20.5], [0, 0, 1]]


def test_without_parameters_nice_slams_are_used(tmp_path, known):
    write_replica(tmp_path, known)
    (tmp_path / "cam_params.json").unlink()
    for i in range(COUNT):
        (tmp_path / "results" / f"frame{i:06d}.png").unlink()
        Image.new("RGB", (1200, 680)).save(tmp_path / "results" / f"frame{i:06d}.jpg")
    scene = load_scene(tmp_path, DataConfig(downscale=8), undistort=True)
    K = scene.splits["train"].cameras.Ks[0]
    torch.testing.assert_close(K, torch.tensor([[75.0, 0, 75.0], [0, 75.0, 42.5], [0, 0, 1]]))
    assert any("NICE-SLAM's intrinsics" in notice for notice in scene.notices)


def test_depth_lifts_pixels_to_where_the_camera_saw_them(tmp_path, known):
    """A plane at depth 2.5 in front of every camera: points lie on it and project to the pixel of their colour."""
    write_replica(tmp_path, known, depth=2.5)
    scene = load_scene(tmp_path, undistort=True)
    assert 1000 < len(scene.points) <= 50_000
    train = scene.splits["train"]
    per_view = len(scene.points) // len(train)
    for i in range(len(train)):
        own = slice(i * per_view, (i + 1) * per_view)
        pixels, depths = train.cameras[i].project(scene.points[own])
        torch.testing.assert_close(depths[0], torch.full((per_view,), 2.5), atol=1e-5, rtol=0)
        centers = pixels[0].floor() + 0.5
        torch.testing.assert_close(pixels[0], centers, atol=1e-3, rtol=0)
        columns, rows = pixels[0].floor().long().unbind(-1)
        torch.testing.assert_close(scene.colors[own] * 255, train.image(i)[rows, columns].float(), atol=1e-3, rtol=0)
    assert any("initial points come from 10 depth images" in notice for notice in scene.notices)


def test_test_views_give_no_points(tmp_path, known):
    write_replica(tmp_path, known)
    for i in (0, 10):
        write_png(tmp_path / "results" / f"depth{i:06d}.png", np.full((HEIGHT, WIDTH), 2500, np.uint16))
    scene = load_scene(tmp_path, undistort=True)
    assert scene.points is None
    assert any("no initial points" in notice for notice in scene.notices)


def test_pixels_without_depth_give_no_points(tmp_path, known):
    write_replica(tmp_path, known, depth=2.5)
    full = len(load_scene(tmp_path, undistort=True).points)
    half = np.full((HEIGHT, WIDTH), 2500, np.uint16)
    half[:, : WIDTH // 2] = 0
    for i in range(COUNT):
        write_png(tmp_path / "results" / f"depth{i:06d}.png", half)
    assert len(load_scene(tmp_path, undistort=True).points) == full // 2


def test_points_do_not_depend_on_the_size_of_the_images(tmp_path, known):
    write_replica(tmp_path, known, depth=1.5)
    full, small = (load_scene(tmp_path, DataConfig(downscale=n), undistort=True) for n in (1, 3))
    torch.testing.assert_close(full.points, small.points, atol=1e-5, rtol=0)


def test_jpeg_frames_are_the_usual_case(tmp_path, known):
    write_replica(tmp_path, known)
    for i in range(COUNT):
        path = tmp_path / "results" / f"frame{i:06d}.png"
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    scene = load_scene(tmp_path, undistort=True)
    assert scene.splits["test"].names == ["results/frame000000.jpg", "results/frame000010.jpg"]
    torch.testing.assert_close(scene.splits["test"].cameras.Ks[0, 0, 0], torch.tensor(FOCAL))


def test_a_scene_folder_may_be_named_by_its_trajectory(root):
    assert load_scene(root / "traj.txt", undistort=True).root == root.resolve()
    shutil.rmtree(root / "results")
    with pytest.raises(UserError, match="no results/ folder"):
        load_scene(root / "traj.txt", undistort=True)
