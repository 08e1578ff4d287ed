"""Times of frames out of files and names, and intrinsics that differ from frame to frame."""

import json
import math

import pytest
import torch
from data_scenes import (
    COUNT,
    FOCAL,
    HEIGHT,
    WIDTH,
    assert_refused,
    nerfstudio_content,
    write_blender,
    write_colmap,
    write_hypernerf,
    write_images,
    write_nerfstudio,
    write_png,
)

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.motion import scene_moves

FROM_NAMES = DataConfig(time_from="names")


def times_by_name(scene) -> dict[str, float]:
    return {
        name: time
        for split in scene.splits.values()
        for name, time in zip(split.names, split.cameras.times.tolist(), strict=True)
    }


def test_nerfstudio_frames_carry_their_times(tmp_path, known):
    content = nerfstudio_content(known)
    for frame in content["frames"]:
        frame["time"] = int(frame["file_path"][-7:-4]) * 2.0
    write_images(tmp_path / "images", known)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    assert scene_moves(tmp_path, DataConfig())
    times = times_by_name(load_scene(tmp_path, undistort=True))
    assert times == pytest.approx({f"images/{i:03d}.png": i / (COUNT - 1) for i in range(COUNT)})


@pytest.mark.parametrize("write", [write_colmap, write_nerfstudio])
def test_names_give_times_when_they_are_asked_to(tmp_path, known, write):
    write(tmp_path, known)
    assert load_scene(tmp_path, undistort=True).splits["train"].cameras.times is None
    assert not scene_moves(tmp_path, DataConfig())
    assert scene_moves(tmp_path, FROM_NAMES)
    scene = load_scene(tmp_path, FROM_NAMES, undistort=True)
    times = times_by_name(scene)
    prefix = "images/" if write is write_nerfstudio else ""
    assert times == pytest.approx({f"{prefix}{i:03d}.png": i / (COUNT - 1) for i in range(COUNT)})
    assert (
        "Times go evenly from 0 ('000') to 1 ('011') in the order of 12 image names (--time-from names)."
        in scene.notices
    )


def test_numbers_in_names_count_as_numbers_and_folders_do_not_count(tmp_path, known):
    """Two cameras, each with the frames 8, 9, ... 13 of a video."""
    content = nerfstudio_content(known)
    for frame in content["frames"]:
        i = int(frame["file_path"][-7:-4])
        frame["file_path"] = f"{'left' if i % 2 else 'right'}/take2_{8 + i // 2}.png"
        write_png(tmp_path / frame["file_path"], known.image(i))
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    times = times_by_name(load_scene(tmp_path, FROM_NAMES, undistort=True))
    sides = ("left", "right")
    assert times == pytest.approx({f"{side}/take2_{8 + i}.png": i / 5 for side in sides for i in range(6)})


def test_names_replace_what_the_files_state(tmp_path, known):
    write_hypernerf(tmp_path, known)
    times = times_by_name(load_scene(tmp_path, FROM_NAMES, undistort=True))
    assert times == pytest.approx({f"{i:06d}.png": i / (COUNT - 1) for i in range(COUNT)})


def test_one_name_for_all_images_says_nothing_of_time(tmp_path, known):
    content = nerfstudio_content(known)
    for i, frame in enumerate(content["frames"]):
        frame["file_path"] = f"camera{i}/image.png"
        write_png(tmp_path / frame["file_path"], known.image(i))
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    assert_refused(tmp_path, "--time-from names: all images are called 'image'", time_from="names")


def test_frames_that_lack_a_time_get_the_remedy(tmp_path, known):
    content = nerfstudio_content(known)
    content["frames"][0]["time"] = 0.5
    write_images(tmp_path / "images", known)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    scene = load_scene(tmp_path, undistort=True)
    assert scene.splits["train"].cameras.times is None
    assert any("11 of 12 frames have no `time`" in n and "--time-from names" in n for n in scene.notices)


# Intrinsics per frame


def own_lens(i: int) -> dict[str, float]:
    """Of another length and centre for each frame."""
    return {"fl_x": FOCAL + i, "fl_y": FOCAL - i, "cx": WIDTH / 2 + i / 8, "cy": HEIGHT / 2 - i / 8}


@pytest.mark.parametrize("format", ["nerfstudio", "blender"])
def test_every_frame_may_have_a_lens_of_its_own(tmp_path, known, format):
    if format == "nerfstudio":
        write_nerfstudio(tmp_path, known)
        names = ["transforms.json"]
    else:
        write_blender(tmp_path, known)
        names = ["transforms_train.json", "transforms_test.json"]
    for name in names:
        content = json.loads((tmp_path / name).read_text())
        for frame in content["frames"]:
            frame |= own_lens(int("".join(filter(str.isdigit, frame["file_path"]))))
        (tmp_path / name).write_text(json.dumps(content))
    for split in load_scene(tmp_path, undistort=True).splits.values():
        for name, K in zip(split.names, split.cameras.Ks, strict=True):
            lens = own_lens(int("".join(filter(str.isdigit, name))))
            expected = [[lens["fl_x"], 0, lens["cx"]], [0, lens["fl_y"], lens["cy"]], [0, 0, 1]]
            torch.testing.assert_close(K, torch.tensor(expected, dtype=torch.float32))


def angle(size: float, focal: float) -> float:
    return 2 * math.atan(0.5 * size / focal)


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        # A vertical field of view alone, which is all that a MuJoCo camera states.
        ({}, {"camera_angle_y": angle(HEIGHT, 50)}, (50, 50)),
        ({}, {"camera_angle_x": angle(WIDTH, 70), "camera_angle_y": angle(HEIGHT, 50)}, (70, 50)),
        ({"fl_x": 60, "fl_y": 60}, {"camera_angle_y": angle(HEIGHT, 50)}, (50, 50)),
        ({"fl_x": 60, "fl_y": 61}, {"camera_angle_x": angle(WIDTH, 70)}, (70, 70)),
        ({"camera_angle_x": angle(WIDTH, 70), "camera_angle_y": angle(HEIGHT, 50)}, {"fl_x": 60}, (60, 60)),
        ({"fl_x": 60, "fl_y": 61}, {"fl_x": 62}, (62, 61)),
        ({"fl_x": 60}, {"fl_x": None, "camera_angle_x": angle(WIDTH, 70)}, (70, 70)),
    ],
)
def test_a_frames_own_field_of_view_goes_before_what_the_file_says_for_all(tmp_path, known, shared, own, expected):
    content = nerfstudio_content(known)
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del content[key]
    content |= shared
    for frame in content["frames"]:
        frame |= own
    write_images(tmp_path / "images", known)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    K = load_scene(tmp_path, undistort=True).splits["train"].cameras.Ks[0]
    torch.testing.assert_close(K.diagonal()[:2], torch.tensor(expected).float())
