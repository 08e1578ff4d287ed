"""Broken and malicious scenes: each is refused by a `UserError` of one line that names the file, by nothing else."""

import json
import os
import shutil

import numpy as np
import pytest
from data_scenes import (
    COUNT,
    WRITERS,
    Known,
    nerfstudio_content,
    sdfstudio_content,
    write_png,
)

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.errors import UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One sound scene per format."""
    root = tmp_path_factory.mktemp("good")
    known = Known()
    for name, write in WRITERS.items():
        write(root / name, known)
    return root


def refuse(root, format, needle, **options):
    with pytest.raises(UserError) as caught:
        load_scene(root, DataConfig(format=format, **options), undistort=True)
    message = str(caught.value)
    assert needle in message
    assert "\n" not in message
    assert len(message) < 2000


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    # Python would write `Infinity`, which is refused as JSON already.
    path.write_text(json.dumps(content).replace("Infinity", "1e999"))


def frame_key(key, value):
    return lambda content: content["frames"][3].update({key: value})


def all_frames(key, value):
    return lambda content: [frame.update({key: value}) for frame in content["frames"]]


def without(key):
    return lambda content: content["frames"][2].pop(key)


def pose_entry(key, value, count):
    """A value in the rotation of `count` poses."""

    def change(content):
        for frame in content["frames"][:count]:
            frame[key][1][1] = value

    return change


def scaled_poses(key):
    def change(content):
        for frame in content["frames"]:
            frame[key] = (np.array(frame[key]) @ np.diag([2.0, 2, 2, 1])).tolist()

    return change


def mirrored_poses(key):
    def change(content):
        for frame in content["frames"]:
            frame[key] = (np.array(frame[key]) @ np.diag([-1.0, 1, 1, 1])).tolist()

    return change


# Cases that any JSON format shares, as changes of the parsed file; `pose` and `image` are the format's own keys.
def json_cases(pose, image):
    return {
        "no frames": lambda c: c.pop("frames"),
        "empty frames": lambda c: c.update(frames=[]),
        "too many frames": lambda c: c.update(frames=[{}] * 100_001),
        "frames is text": lambda c: c.update(frames="abc"),
        "frames of numbers": lambda c: c.update(frames=[1, 2]),
        "frame without pose": without(pose),
        "frame without image": without(image),
        "image is a number": frame_key(image, 7),
        "image is empty": frame_key(image, ""),
        "image leaves the scene": frame_key(image, "../../../etc/passwd.png"),
        "image is absolute": frame_key(image, "/etc/hostname"),
        "image holds NUL": frame_key(image, "a\0b.png"),
        "image cannot be encoded": frame_key(image, "\ud800.png"),
        "image name is endless": all_frames(image, "x" * 100_000),
        "pose is text": frame_key(pose, "identity"),
        "pose is 2x2": frame_key(pose, [[1, 0], [0, 1]]),
        "pose is ragged": frame_key(pose, [[1, 0, 0, 0], [0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "pose holds text": pose_entry(pose, "one", 1),
        "pose holds true": pose_entry(pose, True, 1),
        "poses are infinite": pose_entry(pose, 1e999, 2),
        "poses are beyond any number": pose_entry(pose, 10**400, COUNT),
        "poses are scaled": scaled_poses(pose),
        "poses are mirrored": mirrored_poses(pose),
        "poses are zero": all_frames(pose, np.zeros((4, 4)).tolist()),
        "poses have a last row": all_frames(pose, np.ones((4, 4)).tolist()),
        "all images missing": all_frames(image, "images/nothing.png"),
    }


TEXTS = {
    "not JSON": "{frames: [}",
    "a list": "[1, 2, 3]",
    "NaN": '{"frames": [{"transform_matrix": NaN}]}',
    "duplicate keys": '{"frames": [], "frames": []}',
    "deep": "[" * 5000 + "]" * 5000,
    "deep object": '{"a":' * 60 + "1" + "}" * 60,
    "many digits": '{"frames": ' + "9" * 5000 + "}",
    "empty": "",
}

LENS = {
    "focal is text": {"fl_x": "600"},
    "focal is zero": {"fl_x": 0},
    "focal is negative": {"fl_x": -5.0},
    "focal is infinite": {"fl_x": 1e999},
    "no focal at all": {"fl_x": None},
    "width is a fraction": {"w": 63.5},
    "width is zero": {"w": 0},
    "width is huge": {"w": 10**9},
    "width is wrong": {"w": 70},
    "size is swapped": {"w": 48, "h": 64},
    "centre is far outside": {"cx": -1000.0},
    "unknown camera model": {"camera_model": "FISHEYE624"},
    "camera model is a number": {"camera_model": 4},
    "distortion is absurd": {"k1": 1e9},
    "distortion folds the image away": {"k1": -1000.0},
    "angle too wide": {"camera_angle_x": 4.0},
    "train_filenames is text": {"train_filenames": "images/000.png"},
    "train_filenames match nothing": {"train_filenames": ["nothing.png"]},
    "one image in two splits": {"train_filenames": ["images/000.png"], "test_filenames": ["images/000.png"]},
    "point cloud leaves the scene": {"ply_file_path": "../../points.ply"},
    "point cloud is an image": {"ply_file_path": "images/000.png"},
}


@pytest.mark.parametrize("case", json_cases("transform_matrix", "file_path"))
def test_nerfstudio_frames(good, tmp_path, case):
    root = shutil.copytree(good / "nerfstudio", tmp_path / "scene")
    edit(root / "transforms.json", json_cases("transform_matrix", "file_path")[case])
    refuse(root, "nerfstudio", "transforms.json")


@pytest.mark.parametrize("case", LENS)
def test_nerfstudio_keys(good, tmp_path, case):
    root = shutil.copytree(good / "nerfstudio", tmp_path / "scene")
    (root / "transforms.json").write_text(json.dumps(nerfstudio_content(Known())))
    edit(root / "transforms.json", lambda content: content.update(LENS[case]))
    refuse(root, "nerfstudio", "000.png" if "image" in case and "cloud" in case else "transforms.json")


@pytest.mark.parametrize("case", json_cases("transform_matrix", "file_path"))
def test_blender_frames(good, tmp_path, case):
    root = shutil.copytree(good / "blender", tmp_path / "scene")
    for name in ("transforms_train.json", "transforms_test.json"):
        edit(root / name, json_cases("transform_matrix", "file_path")[case] if "train" in name else lambda c: None)
    if case == "all images missing":
        shutil.rmtree(root / "test")
    refuse(root, "blender", "transforms_train.json")


@pytest.mark.parametrize("case", json_cases("camtoworld", "rgb_path"))
def test_sdfstudio_frames(good, tmp_path, case):
    root = shutil.copytree(good / "sdfstudio", tmp_path / "scene")
    edit(root / "meta_data.json", json_cases("camtoworld", "rgb_path")[case])
    refuse(root, "sdfstudio", "meta_data.json")


SDFSTUDIO = {
    "fisheye": {"camera_model": "OPENCV_FISHEYE"},
    "wrong height": {"height": 47},
    "height is text": {"height": "48"},
    "ground truth is singular": {"worldtogt": np.zeros((4, 4)).tolist()},
    "ground truth is a word": {"worldtogt": "identity"},
    "near behind far": {"scene_box": {"near": 3.0, "far": 1.0}},
    "near is text": {"scene_box": {"near": "a", "far": 1.0}},
    "ground truth is scaled as a whole": {"worldtogt": (2 * np.eye(4)).tolist()},
    "ground truth has perspective": {"worldtogt": (np.eye(4) + 0.1 * np.eye(4)[::-1]).tolist()},
    "ground truth is flat": {"worldtogt": np.diag([1.0, 1, 1e-9, 1]).tolist()},
    "near without far": {"scene_box": {"near": 1.0}},
    "scene box is a list": {"scene_box": [[-1, -1, -1], [1, 1, 1]]},
    "scene box is a number": {"scene_box": 1.0},
    "unknown collider": {"scene_box": {"collider_type": "cylinder"}},
    "collider is a number": {"scene_box": {"collider_type": 3}},
    "collider without range": {"scene_box": {"collider_type": "near_far"}},
    "collider without box": {"scene_box": {"collider_type": "box", "near": 0.1, "far": 1.0}},
    "collider without radius": {"scene_box": {"collider_type": "sphere", "near": 0.1, "far": 1.0}},
    "radius is negative": {"scene_box": {"collider_type": "sphere", "radius": -1.0}},
    "radius is text": {"scene_box": {"radius": "one"}},
    "box is text": {"scene_box": {"aabb": "unit"}},
    "box has one corner": {"scene_box": {"aabb": [[1, 1, 1]]}},
    "box is inside out": {"scene_box": {"aabb": [[1, 1, 1], [-1, -1, -1]]}},
    "box has no size": {"scene_box": {"aabb": [[0, 0, 0], [1, 0, 1]]}},
    "box is beyond reason": {"scene_box": {"aabb": [[0, 0, 0], [1, 1, 1e300]]}},
}


@pytest.mark.parametrize("case", SDFSTUDIO)
def test_sdfstudio_keys(good, tmp_path, case):
    root = shutil.copytree(good / "sdfstudio", tmp_path / "scene")
    (root / "meta_data.json").write_text(json.dumps(sdfstudio_content(Known(), **SDFSTUDIO[case])))
    refuse(root, "sdfstudio", "meta_data.json")


@pytest.mark.parametrize("entry", [("skew", (0, 1), 9.0), ("infinite", (0, 0), 1e999), ("negative", (1, 1), -60.0)])
def test_sdfstudio_intrinsics(good, tmp_path, entry):
    root = shutil.copytree(good / "sdfstudio", tmp_path / "scene")
    _, (row, column), value = entry

    def change(content):
        content["frames"][0]["intrinsics"][row][column] = value

    edit(root / "meta_data.json", change)
    refuse(root, "sdfstudio", "meta_data.json")


@pytest.mark.parametrize(
    ("format", "name"),
    [("blender", "transforms_test.json"), ("nerfstudio", "transforms.json"), ("sdfstudio", "meta_data.json")],
)
@pytest.mark.parametrize("case", TEXTS)
def test_files_that_are_not_what_they_should_be(good, tmp_path, format, name, case):
    root = shutil.copytree(good / format, tmp_path / "scene")
    (root / name).write_text(TEXTS[case])
    refuse(root, format, name)


@pytest.mark.parametrize(
    ("format", "name"),
    [("blender", "transforms_train.json"), ("nerfstudio", "transforms.json"), ("replica", "traj.txt")],
)
def test_binary_rubbish_in_place_of_text(good, tmp_path, format, name):
    root = shutil.copytree(good / format, tmp_path / "scene")
    (root / name).write_bytes(bytes(range(256)) * 9)
    refuse(root, format, name)


def replace_line(number, text):
    def change(root):
        lines = (root / "traj.txt").read_text().splitlines()
        lines[number] = text
        (root / "traj.txt").write_text("\n".join(lines))

    return change


def camera_params(**values):
    def change(root):
        content = json.loads((root / "cam_params.json").read_text())
        content["camera"].update(values)
        (root / "cam_params.json").write_text(json.dumps(content))

    return change


def link_out(root):
    outside = root.parent / "outside.png"
    outside.write_bytes((root / "results" / "frame000000.png").read_bytes())
    (root / "results" / "frame000003.png").unlink()
    os.symlink(outside, root / "results" / "frame000003.png")


REPLICA = {
    "short line": (replace_line(3, "1 0 0 0"), "traj.txt"),
    "long line": (replace_line(3, "1 " * 17), "traj.txt"),
    "words": (replace_line(3, "one " * 16), "traj.txt"),
    "empty trajectory": (lambda root: (root / "traj.txt").write_text("\n\n"), "traj.txt"),
    "two poses not finite": (
        lambda root: (replace_line(3, "nan " * 16)(root), replace_line(4, "inf " * 16)(root)),
        "traj",
    ),
    "two poses mirrored": (
        lambda root: [replace_line(i, "-1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1")(root) for i in (1, 2)],
        "traj",
    ),
    "two poses without last row": (
        lambda root: [replace_line(i, "1 0 0 0 0 1 0 0 0 0 1 0 0 0 1 1")(root) for i in (1, 2)],
        "traj",
    ),
    "too few poses": (lambda root: (root / "traj.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n"), "traj.txt"),
    "most images gone": (
        lambda root: [(root / "results" / f"frame{i:06d}.png").unlink() for i in range(7)],
        "traj.txt",
    ),
    "one frame in two formats": (
        lambda root: shutil.copy(root / "results/frame000001.png", root / "results/frame000001.jpg"),
        "frame000001.jpg",
    ),
    "a link leaves the scene": (link_out, "traj.txt"),
    "digits of another script": (
        lambda root: (
            (root / "results/frame000003.png").rename(root / "results/frame\u0663.png")
            and [(root / "results" / f"frame{i:06d}.png").unlink() for i in range(4, 10)]
        ),
        "images have no file",
    ),
    "no results": (lambda root: shutil.rmtree(root / "results"), "results/"),
    "parameters are not JSON": (lambda root: (root / "cam_params.json").write_text("{"), "cam_params.json"),
    "parameters are a list": (lambda root: (root / "cam_params.json").write_text("[]"), "cam_params.json"),
    "zero scale": (camera_params(scale=0), "cam_params.json"),
    "text scale": (camera_params(scale="6553.5"), "cam_params.json"),
    "negative focal": (camera_params(fx=-600.0), "cam_params.json"),
    "wrong width": (camera_params(w=65), "cam_params.json"),
    "swapped size": (camera_params(w=48, h=64), "cam_params.json"),
    "centre far away": (camera_params(cx=1e6), "cam_params.json"),
    "default intrinsics do not fit": (lambda root: (root / "cam_params.json").unlink(), "cam_params.json"),
    "depth of the wrong kind": (
        lambda root: shutil.copy(root / "results/frame000001.png", root / "results/depth000001.png"),
        "depth000001.png",
    ),
}


@pytest.mark.parametrize("case", REPLICA)
def test_replica(good, tmp_path, case):
    root = shutil.copytree(good / "replica", tmp_path / "scene")
    change, needle = REPLICA[case]
    change(root)
    refuse(root, "replica", needle)


MAIN_FILES = {
    "blender": ["transforms_train.json", "transforms_test.json"],
    "nerfstudio": ["transforms.json"],
    "replica": ["traj.txt", "cam_params.json"],
    "sdfstudio": ["meta_data.json"],
    "colmap": ["sparse", "sparse/0", "sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin"],
}


@pytest.mark.parametrize(("format", "name"), [(format, name) for format in MAIN_FILES for name in MAIN_FILES[format]])
def test_what_lists_the_images_may_not_lie_elsewhere_either(good, tmp_path, format, name):
    """A link to a file of the user's own, which a message could quote."""
    root = shutil.copytree(good / format, tmp_path / "scene")
    shutil.move(root / name, tmp_path / "outside")
    os.symlink(tmp_path / "outside", root / name)
    refuse(root, format, "leaves the scene folder")
    load_scene(root, DataConfig(format=format, allow_external_paths=True), undistort=True)


def test_the_sound_scenes_are_sound(good):
    """The cases above fail for what they change, not for what they start from."""
    for format in WRITERS:
        load_scene(good / format, DataConfig(format=format), undistort=True)


@pytest.mark.parametrize("format", WRITERS)
def test_a_broken_image_is_found_before_training(good, tmp_path, format):
    root = shutil.copytree(good / format, tmp_path / "scene")
    image = sorted(path for path in root.rglob("*.png") if "005" in path.name or "r_05" in path.name)[0]
    image.write_bytes(image.read_bytes()[:-40])
    refuse(root, format, image.name)


@pytest.mark.parametrize("format", WRITERS)
def test_an_image_of_another_size_is_found(good, tmp_path, format):
    root = shutil.copytree(good / format, tmp_path / "scene")
    image = sorted(path for path in root.rglob("*.png") if "005" in path.name or "r_05" in path.name)[0]
    write_png(image, np.zeros((7, 9, 3), np.uint8))
    refuse(root, format, image.name)
