"""HyperNeRF and Nerfies: moments, splits, the frame of the files, reduced copies, and hostile files."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from data_scenes import (
    COUNT,
    FOCAL,
    HEIGHT,
    HYPERNERF_SCALE,
    WIDTH,
    assert_refused,
    link_out,
    write_colmap,
    write_hypernerf,
    write_png,
)

from nfc_splat.data import DataConfig, detect_format, load_scene


@pytest.fixture
def root(known, tmp_path):
    write_hypernerf(tmp_path / "scene", known)
    return tmp_path / "scene"


def edit(root, name, change):
    content = json.loads((root / name).read_text())
    change(content)
    (root / name).write_text(json.dumps(content).replace("Infinity", "1e999"))


def changed(name, **values):
    return lambda root: edit(root, name, lambda content: content.update(values))


def without(name, key):
    return lambda root: edit(root, name, lambda content: content.pop(key))


def every_camera(**values):
    return lambda root: [edit(root, f"camera/{i:06d}.json", lambda c: c.update(values)) for i in range(COUNT)]


CAMERA = "camera/000003.json"


def test_axes_and_frame_are_those_of_the_files(root):
    """A camera written out by hand: at (1, 2, 3), looking along the world's y, x to the right, z up."""
    rows = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # right, down, forwards
    changed("camera/000001.json", orientation=rows, position=[1, 2, 3])(root)
    test = load_scene(root, undistort=True).splits["test"]
    camera = test.cameras[test.names.index("000001.png")]
    pixels, depths = camera.project(torch.tensor([[1.0, 12, 3], [1 + 2, 12, 3], [1, 12, 3 + 2]]))
    torch.testing.assert_close(depths[0], torch.full((3,), 10.0))
    middle = torch.tensor([WIDTH / 2, HEIGHT / 2])
    shift = FOCAL / 5
    torch.testing.assert_close(pixels[0], middle + torch.tensor([[0.0, 0], [shift, 0], [0, -shift]]))
    torch.testing.assert_close(camera.centers[0], torch.tensor([1.0, 2, 3]))


def test_the_centre_and_scale_move_nothing_but_bring_the_depths_to_the_frame(root, known):
    scene = load_scene(root, undistort=True)
    assert scene.near_far == (0.25 / HYPERNERF_SCALE, 0.75 / HYPERNERF_SCALE)
    np.testing.assert_allclose(scene.points.numpy(), known.points, rtol=1e-6)
    assert scene.colors is None
    assert (scene.bounds, scene.sphere) == (None, None)


def test_moments_are_shared_by_the_two_cameras_and_span_zero_to_one(root):
    scene = load_scene(root, undistort=True)
    expected = torch.arange(COUNT // 2) / (COUNT // 2 - 1)
    torch.testing.assert_close(scene.splits["train"].cameras.times, expected)
    torch.testing.assert_close(scene.splits["test"].cameras.times, expected)
    assert any("Times from 0 to 5 were mapped" in notice for notice in scene.notices)
    assert any("val_ids of dataset.json are the test images" in notice for notice in scene.notices)


@pytest.mark.parametrize("key", ["time_id", "appearance_id"])
def test_which_number_is_the_time(root, key):
    """`time_id` goes before `warp_id`, which goes before `appearance_id`."""
    numbers = {"time_id": {"time_id": 0, "warp_id": 1}, "appearance_id": {"appearance_id": 1}}[key]
    moments = {f"{i:06d}": {name: i * (value or i) for name, value in numbers.items()} for i in range(COUNT)}
    (root / "metadata.json").write_text(json.dumps(moments))
    times = load_scene(root, undistort=True).splits["test"].cameras.times
    ids = torch.arange(1, COUNT, 2)
    torch.testing.assert_close(
        times, (ids * ids if key == "time_id" else ids) / ((COUNT - 1) ** (1 + (key == "time_id")))
    )


def test_images_in_no_list_are_left_out_and_said(root):
    ids = [f"{i:06d}" for i in range(COUNT)]
    changed("dataset.json", train_ids=ids[:8], val_ids=ids[10:])(root)
    scene = load_scene(root, undistort=True)
    assert [len(split) for split in scene.splits.values()] == [8, 2]
    assert any("left out: '000008', '000009'" in notice for notice in scene.notices)


def test_without_validation_images_some_are_held_out(root):
    changed("dataset.json", train_ids=[f"{i:06d}" for i in range(COUNT)], val_ids=[])(root)
    scene = load_scene(root, undistort=True)
    assert scene.splits["test"].names == ["000000.png", "000008.png"]
    assert any("has no val_ids" in notice for notice in scene.notices)


def test_lenses_keep_their_coefficients_and_aspect(root):
    every_camera(radial_distortion=[0.05, -0.02, 0.01], tangential=[0.002, -0.001], pixel_aspect_ratio=1.25)(root)
    cameras = load_scene(root, undistort=False).splits["train"].cameras
    assert cameras.model == "opencv"
    assert cameras.distortion[0].tolist() == pytest.approx([0.05, -0.02, 0.01, 0.002, -0.001, 0])
    assert cameras.Ks[0, 0, 0] == FOCAL
    assert cameras.Ks[0, 1, 1] == 1.25 * FOCAL


def test_reduced_copies_are_found_by_hypernerfs_names(root, known):
    for i in range(COUNT):
        blocks = known.image(i).reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3)
        write_png(root / "rgb" / "2x" / f"{i:06d}.png", np.round(blocks.mean((1, 3))).astype(np.uint8))
    scene = load_scene(root, DataConfig(downscale=2), undistort=True)
    assert scene.resampler == "2x"
    assert scene.splits["train"].cameras.Ks[0].tolist() == [[30, 0, 16], [0, 30, 12], [0, 0, 1]]
    shutil.rmtree(root / "rgb" / "1x")
    assert load_scene(root, DataConfig(downscale=2), undistort=True).splits["train"].names[1] == "000002.png"
    assert_refused(root, "there is 2x: pass --downscale 2")


def test_photographs_may_be_jpegs_by_name(root):
    (root / "rgb" / "1x" / "000004.png").rename(root / "rgb" / "1x" / "000004.jpg")
    assert "000004.jpg" in load_scene(root, undistort=True).splits["train"].names


def test_a_colmap_model_of_it_goes_behind_since_it_has_no_times(root, known):
    write_colmap(root, known, where="colmap/sparse/0")
    format, reason, _ = detect_format(root)
    assert format == "hypernerf"
    assert "would also do as colmap" in reason


def test_points_that_are_not_finite_are_counted(root, known):
    points = known.points.astype(np.float32)
    points[3, 1] = np.nan
    np.save(root / "points.npy", points)
    scene = load_scene(root, undistort=True)
    assert len(scene.points) == len(points) - 1
    assert any("Warning: 1 point of points.npy left out" in notice for notice in scene.notices)
    (root / "points.npy").unlink()
    assert load_scene(root, undistort=True).points is None


def test_the_capture_is_known_again_and_another_moment_noticed(root):
    first = load_scene(root, undistort=True).stated
    assert load_scene(root, undistort=True).stated == first
    edit(root, "metadata.json", lambda content: content["000002"].update(warp_id=2))
    assert load_scene(root, undistort=True).stated != first


LEAVES = "leaves the scene folder"
CASES = {
    "no training ids": (changed("dataset.json", train_ids=[]), "`train_ids` is empty"),
    "no list of ids": (without("dataset.json", "train_ids"), "`train_ids` is empty or absent"),
    "ids are numbers": (changed("dataset.json", train_ids=[1, 2]), "`train_ids` is not a list"),
    "ids are a word": (changed("dataset.json", val_ids="000001"), "`val_ids` is not a list"),
    "an id climbs": (changed("dataset.json", val_ids=["../../000001"]), "`val_ids` is not a list"),
    "an id with a line break": (changed("dataset.json", ids=["a\nb"]), "`ids` is not a list"),
    "too many ids": (changed("dataset.json", train_ids=["000000"] * 100_001), "100001 names"),
    "an id in both": (changed("dataset.json", val_ids=["000002"]), "'000002' are in `train_ids` and in `val_ids`"),
    "an id without camera": (lambda root: (root / CAMERA).unlink(), "000003.json: there is no such file"),
    "an id without moment": (without("metadata.json", "000003"), "no object for '000003'"),
    "a moment is a number": (changed("metadata.json", **{"000003": 4}), "no object for '000003'"),
    "a moment is a fraction": (changed("metadata.json", **{"000003": {"warp_id": 1.5}}), "expected a whole number"),
    "a moment is text": (changed("metadata.json", **{"000003": {"warp_id": "1"}}), "expected a number"),
    "a moment is infinite": (changed("metadata.json", **{"000003": {"warp_id": 1e999}}), "expected a finite number"),
    "moments span everything": (
        changed("metadata.json", **{"000003": {"warp_id": 1e308}, "000004": {"warp_id": -1e308}}),
        "its time is 1e+308",
    ),
    "no scale": (without("scene.json", "scale"), "there is no `scale`"),
    "scale is zero": (changed("scene.json", scale=0), "`scale` is 0"),
    "scale is negative": (changed("scene.json", scale=-2.0), "`scale` is -2"),
    "near behind far": (changed("scene.json", near=1.0), "expected 0 <= near < far"),
    "near is text": (changed("scene.json", near="0"), "`near` is '0'"),
    "no scene.json": (lambda root: (root / "scene.json").unlink(), "scene.json: there is no such file"),
    "orientation is 2x2": (changed(CAMERA, orientation=[[1, 0], [0, 1]]), "expected 3x3"),
    "orientation is absent": (without(CAMERA, "orientation"), "`orientation` is absent"),
    "orientations are scaled": (every_camera(orientation=(2 * np.eye(3)).tolist()), "no rotation"),
    "orientations are mirrored": (every_camera(orientation=np.diag([1.0, 1, -1]).tolist()), "left-handed"),
    "orientations are infinite": (every_camera(orientation=np.full((3, 3), np.inf).tolist()), "NaN or Inf"),
    "position has two numbers": (changed(CAMERA, position=[1, 2]), "expected a list of 3 numbers"),
    "position holds null": (changed(CAMERA, position=[1, 2, None]), "expected a list of 3 numbers"),
    "position is infinite": (changed(CAMERA, position=[1, 2, 1e999]), "expected a finite number"),
    "position is absent": (without(CAMERA, "position"), "there is no `position`"),
    "focal is zero": (changed(CAMERA, focal_length=0), "focal lengths 0 and 0"),
    "focal is absent": (without(CAMERA, "focal_length"), "there is no `focal_length`"),
    "aspect is zero": (changed(CAMERA, pixel_aspect_ratio=0.0), "focal lengths 60 and 0"),
    "centre is far outside": (changed(CAMERA, principal_point=[-1000, 5]), "principal point"),
    "size is wrong": (changed(CAMERA, image_size=[70, 48]), "but the intrinsics in"),
    "size is swapped": (changed(CAMERA, image_size=[HEIGHT, WIDTH]), "is it rotated?"),
    "size is a fraction": (changed(CAMERA, image_size=[64.5, 48]), "`image_size` is [64.5, 48.0]"),
    "size is huge": (changed(CAMERA, image_size=[1e9, 48]), "expected whole pixels"),
    "skew": (changed(CAMERA, skew=3.0), "`skew` is 3"),
    "distortion is absurd": (changed(CAMERA, radial_distortion=[1e9, 0, 0]), "a distortion coefficient is 1e+09"),
    "distortion has four": (changed(CAMERA, radial_distortion=[0, 0, 0, 0]), "expected a list of 3 numbers"),
    "camera is a list": (lambda root: (root / CAMERA).write_text("[]"), "expected a JSON object"),
    "camera is not JSON": (lambda root: (root / CAMERA).write_bytes(bytes(range(256))), "000003.json"),
    "points are flat": (lambda root: np.save(root / "points.npy", np.zeros((4, 2))), "4x2, expected Nx3"),
    "points are cut": (lambda root: os.truncate(root / "points.npy", 200), "points.npy"),
    "points are objects": (
        lambda root: np.save(root / "points.npy", np.full((4, 3), None), allow_pickle=True),
        "expected float32 or float64",
    ),
    "most images are gone": (
        lambda root: [(root / "rgb" / "1x" / f"{i:06d}.png").unlink() for i in range(7)],
        "7 of 12 images have no file: '000000.png'",
    ),
    "dataset.json leaves the scene": (link_out("dataset.json"), LEAVES),
    "scene.json leaves the scene": (link_out("scene.json"), LEAVES),
    "metadata.json leaves the scene": (link_out("metadata.json"), LEAVES),
    "a camera leaves the scene": (link_out(CAMERA), LEAVES),
    "an image leaves the scene": (link_out("rgb/1x/000003.png"), LEAVES),
    "points leave the scene": (link_out("points.npy"), LEAVES),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_scenes(root, case):
    spoil, needle = CASES[case]
    spoil(root)
    assert_refused(root, needle, format="hypernerf")
