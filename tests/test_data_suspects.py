"""What the doctor says about scenes: nothing about a good one, the right thing about each spoiled one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_toys import ring_of_cameras, write_blender_scene
from PIL import Image

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.suspects import Finding, notice_finding, scene_findings

PLENTY = 10**12


@pytest.fixture
def folder(tmp_path):
    return write_blender_scene(tmp_path / "ball")


def findings(scene, memory=PLENTY):
    return [finding for section in scene_findings(scene, memory).values() for finding in section]


def load(folder):
    return load_scene(folder, undistort=True)


def suspect(scene, subject, memory=PLENTY):
    """The one suspect finding about `subject`."""
    found = [f for f in findings(scene, memory) if f.subject == subject and f.level in ("warn", "bad")]
    assert len(found) == 1, found
    return found[0]


def edit(folder, change, split="train"):
    path = folder / f"transforms_{split}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def repaint(path, change):
    pixels = np.asarray(Image.open(path)).copy()
    change(pixels)
    Image.fromarray(pixels).save(path)


def test_nothing_is_suspect_in_a_good_scene(folder):
    scene = load(folder)
    said = findings(scene)
    assert {f.level for f in said} <= {"ok", "note"}
    text = {f.subject: f.text for f in said}
    assert text["splits"] == "8 images for train, 3 images for test"
    assert text["image size"].startswith("32x32")
    assert "44 degrees" in text["lens"]
    assert text["arrangement"].startswith("all look at about (")
    assert "points" in text


def test_points_in_view_are_fine_and_points_behind_are_not(folder):
    scene = load(folder)
    scene.points = torch.randn(500, 3).clamp(-1, 1)
    assert {f.level for f in findings(scene) if f.subject == "visibility"} == {"ok"}
    scene.points = scene.points + torch.tensor([0.0, 0.0, 40.0])
    finding = suspect(scene, "visibility")
    assert finding.level == "bad"
    assert "check axes" in finding.text


def test_flipped_axes_are_noticed(folder):
    """OpenGL poses taken for OpenCV ones look away from the points."""

    def flip(record):
        for frame in record["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:, 1:3] *= -1
            frame["transform_matrix"] = pose.tolist()

    edit(folder, flip)
    edit(folder, flip, "test")
    scene = load(folder)
    scene.points = torch.randn(500, 3).clamp(-1, 1)
    assert suspect(scene, "visibility").level == "bad"


def test_outlying_and_broken_points(folder):
    scene = load(folder)
    points = torch.rand(1000, 3) - 0.5
    points[:10] = 500.0
    points[10] = float("nan")
    scene.points = points
    assert suspect(scene, "outliers").text.startswith("1 %")
    assert suspect(scene, "points").text == "1 hold NaN or Inf"


def test_cameras_in_one_place(folder):
    scene = load(folder)
    for split in scene.splits.values():
        viewmats = split.cameras.viewmats.clone()
        viewmats[:, :3, 3] = 0
        split.cameras = replace(split.cameras, viewmats=viewmats)
    assert "same place" in suspect(scene, "extent").text


def test_arrangements(folder):
    scene = load(folder)
    told = lambda: next(f.text for f in findings(scene) if f.subject == "arrangement")  # noqa: E731
    for split in scene.splits.values():
        viewmats = split.cameras.viewmats.clone()
        viewmats[:, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])) @ viewmats[:, :3, :3]
        viewmats[:, 0, 3] *= -1
        viewmats[:, 2, 3] *= -1
        split.cameras = replace(split.cameras, viewmats=viewmats)
    assert told() == "they stand inside and look outwards"
    for split in scene.splits.values():
        viewmats = torch.eye(4).repeat(len(split), 1, 1)
        viewmats[:, 0, 3] = torch.arange(len(split)) * 0.1
        split.cameras = replace(split.cameras, viewmats=viewmats)
    assert told() == "all look the same way (forward-facing)"


def test_two_views_from_one_pose(folder):
    def copy_pose(record):
        record["frames"][3]["transform_matrix"] = record["frames"][5]["transform_matrix"]

    edit(folder, copy_pose)
    assert "'train/r_3.png' and 'train/r_5.png'" in suspect(load(folder), "duplicates").text


def test_a_test_image_that_was_trained_on(folder):
    (folder / "test/r_1.png").write_bytes((folder / "train/r_4.png").read_bytes())
    assert "1 test image equal to a training image: 'test/r_1.png'" in suspect(load(folder), "leak").text


def test_a_training_image_that_occurs_twice(folder):
    (folder / "train/r_1.png").write_bytes((folder / "train/r_4.png").read_bytes())
    assert "'train/r_4.png'" in suspect(load(folder), "repeated").text


def test_a_blank_image(folder):
    repaint(folder / "train/r_2.png", lambda pixels: pixels.fill(200))
    assert "'train/r_2.png'" in suspect(load(folder), "blank").text


def test_an_underexposed_image(folder):
    def darken(pixels):
        pixels[..., :3] //= 16

    repaint(folder / "train/r_6.png", darken)
    assert "1 image far from the others: 'train/r_6.png'" in suspect(load(folder), "exposure").text


def test_images_that_are_all_transparent(folder):
    for path in folder.glob("*/*.png"):
        repaint(path, lambda pixels: pixels[..., 3].fill(0))
    assert "0 % of the pixels" in suspect(load(folder), "alpha").text


def test_more_memory_than_there_is(folder):
    finding = suspect(load(folder), "memory", memory=10**8)
    assert "0.1 GB are free; use --downscale" in finding.text
    assert {f.level for f in findings(load(folder), None) if f.subject == "memory"} == {"ok"}


def test_without_test_images_nothing_is_measured(folder):
    scene = load_scene(folder, DataConfig(test_every=0), undistort=True)
    assert "--test-every" in suspect(scene, "splits").text


def test_a_moving_scene_with_one_time(folder):
    def add_time(record):
        for frame in record["frames"]:
            frame["time"] = 0.5

    edit(folder, add_time)
    edit(folder, add_time, "test")
    assert "cannot be learned" in suspect(load(folder), "time").text


def test_an_odd_lens(folder):
    edit(folder, lambda record: record.update(camera_angle_x=0.01))
    edit(folder, lambda record: record.update(camera_angle_x=0.01), "test")
    assert "focal length" in suspect(load(folder), "lens").text


def test_masks_are_counted(tmp_path):
    folder = write_blender_scene(tmp_path)
    scene = load(folder)
    mask = torch.zeros(32, 32)
    mask[:16] = 1
    scene.splits["train"].mask = lambda index: mask
    told = next(f.text for f in findings(scene) if f.subject == "masks")
    assert told == "8 images with a mask, 50 % of the pixels kept"


def test_warnings_of_the_readers_are_suspect():
    assert notice_finding("Warning: odd.") == Finding("warn", "reader", "odd.")
    assert notice_finding("All well.") == Finding("note", "reader", "All well.")


def test_the_toy_cameras_see_the_sphere():
    pixels, depth = ring_of_cameras(5).project(torch.zeros(1, 3))
    torch.testing.assert_close(pixels, torch.full((5, 1, 2), 16.0))
    assert (depth > 0).all()
