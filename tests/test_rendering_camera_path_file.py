"""nerfstudio's camera paths: axes, fields of view, times, the frame that nerfstudio trains in, and hostile files."""

import json
import math

import numpy as np
import pytest
import torch
from data_scenes import Known, opengl

from nfc_splat.errors import UserError
from nfc_splat.rendering.camera_path_file import TRANSFORMS, read_camera_path

FOV = 40.0


def content(known, **extra):
    cameras = [
        {"camera_to_world": np.array(opengl(pose)).ravel().tolist(), "fov": FOV + i, "aspect": 1.5}
        for i, pose in enumerate(known.poses[:5])
    ]
    return {"camera_type": "perspective", "render_width": 120, "render_height": 80, "camera_path": cameras, **extra}


def write(folder, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "path.json").write_text(json.dumps(value).replace("Infinity", "1e999"))
    return folder / "path.json"


def test_points_are_seen_where_the_path_says(tmp_path, known):
    found = read_camera_path(write(tmp_path, content(known, fps=24, seconds=2)))
    assert (found.width, found.height, found.fps, found.times, found.moved) == (120, 80, 24, None, False)
    cameras = found.cameras(found.width, found.height)
    pixels, depths = cameras.project(torch.from_numpy(known.points).float())
    for i in range(5):
        local = (known.points - known.poses[i, :3, 3]) @ known.poses[i, :3, :3]
        focal = 40 / math.tan(math.radians(FOV + i) / 2)
        np.testing.assert_allclose(pixels[i], focal * local[:, :2] / local[:, 2:] + [60, 40], atol=1e-3)
        np.testing.assert_allclose(depths[i], local[:, 2], atol=1e-5)


def test_another_size_keeps_the_vertical_field_of_view(tmp_path, known):
    found = read_camera_path(write(tmp_path, content(known)))
    cameras = found.cameras(100, 160)
    assert (cameras.width, cameras.height) == (100, 160)
    focal = 80 / math.tan(math.radians(FOV) / 2)
    torch.testing.assert_close(cameras.Ks[0], torch.tensor([[focal, 0, 50], [0, focal, 80], [0, 0, 1]]))


def test_times_count_where_every_camera_has_one(tmp_path, known):
    value = content(known)
    for i, camera in enumerate(value["camera_path"]):
        camera["render_time"] = i / 4
    found = read_camera_path(write(tmp_path, value))
    assert found.times.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.cameras(8, 8).times.tolist() == found.times.tolist()
    value["camera_path"][2]["render_time"] = None
    assert read_camera_path(write(tmp_path, value)).times is None


def test_what_nerfstudio_did_to_the_scene_is_undone(tmp_path, known):
    """It moves a pose by the matrix and multiplies its position by the scale."""
    angle = 0.7
    matrix = np.array([[math.cos(angle), 0, -math.sin(angle), 0.3], [0, 1, 0, -0.2]])
    matrix = np.vstack([matrix, [math.sin(angle), 0, math.cos(angle), 0.9], [0, 0, 0, 1]])
    value = content(known)
    for camera, pose in zip(value["camera_path"], known.poses[:5], strict=True):
        moved = matrix @ np.array(opengl(pose))
        moved[:3, 3] *= 0.125
        camera["camera_to_world"] = moved.tolist()
    plain = read_camera_path(write(tmp_path / "plain", content(known)))
    path = write(tmp_path / "moved", value)
    (path.parent / TRANSFORMS).write_text(json.dumps({"transform": matrix[:3].tolist(), "scale": 0.125}))
    found = read_camera_path(path)
    assert found.moved
    torch.testing.assert_close(found.poses, plain.poses, rtol=0, atol=1e-12)


def camera(**values):
    return lambda c: c["camera_path"][2].update(values)


SHEARED = np.diag([1.0, 2.0, 1.0, 1.0]).ravel().tolist()
MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0]).ravel().tolist()
CASES = {
    "no cameras": (lambda c: c.pop("camera_path"), "with a list of cameras as `camera_path`"),
    "empty": (lambda c: c.update(camera_path=[]), "with a list of cameras"),
    "cameras are numbers": (lambda c: c.update(camera_path=[1]), "with a list of cameras"),
    "too many": (lambda c: c.update(camera_path=[{}] * 100_000), "100000 cameras, expected at most 99999"),
    "fisheye": (lambda c: c.update(camera_type="fisheye"), '`camera_type` is "fisheye", expected perspective'),
    "type is a list": (lambda c: c.update(camera_type=[1]), "`camera_type` is [1]"),
    "no width": (lambda c: c.pop("render_width"), "`render_width` is absent"),
    "width is huge": (lambda c: c.update(render_width=10**9), "`render_width` is 1000000000, expected a number from 1"),
    "width is true": (lambda c: c.update(render_width=True), "`render_width` is true"),
    "rate is zero": (lambda c: c.update(fps=0), "`fps` is 0"),
    "fifteen numbers": (camera(camera_to_world=[1.0] * 15), "camera 2: `camera_to_world` holds 15 numbers"),
    "numbers are text": (camera(camera_to_world=["1"] * 16), "holds 0 numbers, expected 16"),
    "pose is absent": (camera(camera_to_world=None), "holds 0 numbers"),
    "pose is sheared": (camera(camera_to_world=SHEARED), "camera 2: `camera_to_world` is no rotation and position"),
    "pose is mirrored": (camera(camera_to_world=MIRRORED), "is no rotation and position"),
    "pose is infinite": (camera(camera_to_world=[math.inf] * 16), "is no rotation and position"),
    "pose is beyond any number": (camera(camera_to_world=[10**400] * 16), "is no rotation and position"),
    "no field of view": (camera(fov=None), "camera 2: `fov` is absent"),
    "field of view is a half turn": (camera(fov=180), "`fov` is 180, expected a number from 0.01 to 179"),
    "field of view is infinite": (camera(fov=math.inf), "`fov` is Infinity"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_files(tmp_path, case):
    change, needle = CASES[case]
    value = content(Known())
    change(value)
    refuse(write(tmp_path, value), needle)


def refuse(path, needle):
    with pytest.raises(UserError) as caught:
        read_camera_path(path)
    message = str(caught.value)
    assert needle in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("value", "needle"),
    [
        ([], "`transform` holds 0 numbers"),
        ({"transform": [[1, 0, 0, 0]] * 2, "scale": 1}, "`transform` holds 8 numbers"),
        ({"transform": (2 * np.eye(4)[:3]).tolist(), "scale": 1}, "`transform` is no rotation"),
        ({"transform": np.eye(4)[:3].tolist(), "scale": 0}, "`scale` is 0"),
        ({"transform": np.eye(4)[:3].tolist()}, "`scale` is absent"),
    ],
)
def test_hostile_transforms(tmp_path, known, value, needle):
    path = write(tmp_path, content(known))
    (tmp_path / TRANSFORMS).write_text(json.dumps(value))
    refuse(path, needle)


def test_what_is_not_json(tmp_path):
    (tmp_path / "path.json").write_text("{camera_path")
    refuse(tmp_path / "path.json", "not valid JSON")
    refuse(tmp_path / "absent.json", "cannot be read")
