"""COLMAP models: camera models, several models, names, masks, registration, and mutated files."""

import shutil
import struct

import numpy as np
import pytest
from data_scenes import (
    COUNT,
    result_or_refusal,
    write_colmap,
    write_colmap_binary,
    write_colmap_text,
    write_images,
    write_png,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.colmap_model import read_model
from nfc_splat.errors import UserError

# Name, number, parameters, and what becomes of them: fx, fy, cx, cy, model, coefficients.
CAMERAS = [
    ("SIMPLE_PINHOLE", 0, [60, 31, 23], (60, 60, 31, 23), "pinhole", [0] * 6),
    ("PINHOLE", 1, [60, 61, 31, 23], (60, 61, 31, 23), "pinhole", [0] * 6),
    ("SIMPLE_RADIAL", 2, [60, 31, 23, 0.1], (60, 60, 31, 23), "opencv", [0.1, 0, 0, 0, 0, 0]),
    ("RADIAL", 3, [60, 31, 23, 0.1, 0.2], (60, 60, 31, 23), "opencv", [0.1, 0.2, 0, 0, 0, 0]),
    ("OPENCV", 4, [60, 61, 31, 23, 0.1, 0.2, 0.3, 0.4], (60, 61, 31, 23), "opencv", [0.1, 0.2, 0, 0.3, 0.4, 0]),
    (
        *("OPENCV_FISHEYE", 5, [60, 61, 31, 23, 0.1, 0.2, 0.3, 0.4]),
        *((60, 61, 31, 23), "opencv_fisheye", [0.1, 0.2, 0.3, 0.4, 0, 0]),
    ),
    (
        *("FULL_OPENCV", 6, [60, 61, 31, 23, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0, 0]),
        *((60, 61, 31, 23), "opencv", [0.1, 0.2, 0.5, 0.3, 0.4, 0]),
    ),
    ("SIMPLE_RADIAL_FISHEYE", 8, [60, 31, 23, 0.1], (60, 60, 31, 23), "opencv_fisheye", [0.1, 0, 0, 0, 0, 0]),
    ("RADIAL_FISHEYE", 9, [60, 31, 23, 0.1, 0.2], (60, 60, 31, 23), "opencv_fisheye", [0.1, 0.2, 0, 0, 0, 0]),
]


@pytest.fixture(scope="module")
def base(known, tmp_path_factory):
    root = tmp_path_factory.mktemp("colmap")
    write_colmap(root, known)
    return root


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera[0])
@pytest.mark.parametrize("write", [write_colmap_binary, write_colmap_text])
def test_every_supported_camera_model(tmp_path, known, camera, write):
    name, number, parameters, (fx, fy, cx, cy), model, coefficients = camera
    write(tmp_path, known, camera=(name, number, parameters))
    lens = read_model(tmp_path, remedy="").lenses[7]
    assert (lens.width, lens.height, lens.fx, lens.fy, lens.cx, lens.cy) == (64, 48, fx, fy, cx, cy)
    assert lens.model == model
    assert list(lens.distortion) == coefficients


def test_the_model_with_most_images_is_taken(base, tmp_path, known):
    root = shutil.copytree(base, tmp_path / "scene")
    shutil.move(root / "sparse" / "0", root / "sparse" / "1")
    small = root / "sparse" / "0"
    write_colmap_binary(small, known)
    content = (small / "images.bin").read_bytes()
    (small / "images.bin").write_bytes(struct.pack("<Q", 2) + content[8:])
    scene = load_scene(root, undistort=True)
    assert sum(map(len, scene.splits.values())) == COUNT
    assert any("2 COLMAP models" in n and "sparse/0 (2 images), sparse/1 (12 images)" in n for n in scene.notices)


@pytest.mark.parametrize("where", ["sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse"])
def test_places_where_models_are_looked_for(tmp_path, known, where):
    write_colmap(tmp_path, known, where=where)
    assert where in load_scene(tmp_path, undistort=True).reason


def test_images_that_were_not_registered_are_counted(base, tmp_path):
    root = shutil.copytree(base, tmp_path / "scene")
    for i in range(2):
        shutil.copy(root / "images" / "000.png", root / "images" / f"extra{i}.png")
    notices = load_scene(root, undistort=True).notices
    assert any("12 of 14 images; without a pose: 'extra0.png', 'extra1.png'" in n and "Warn" not in n for n in notices)
    for i in range(2, 5):
        shutil.copy(root / "images" / "000.png", root / "images" / f"extra{i}.png")
    notices = load_scene(root, undistort=True).notices
    assert any(n.startswith("Warning: COLMAP registered 12 of 17 images") and "under 80 %" in n for n in notices)


def test_names_with_folders_and_spaces(tmp_path, known):
    write_images(tmp_path / "images" / "left eye", known)
    write_colmap_text(tmp_path / "sparse", known)
    path = tmp_path / "sparse" / "images.txt"
    path.write_text(path.read_text().replace(" 7 0", " 7 left eye/0"))
    scene = load_scene(tmp_path, undistort=True)
    assert scene.splits["test"].names == ["left eye/000.png", "left eye/008.png"]


@pytest.mark.parametrize("naming", ["{name}.png", "{name}", "{stem}.png"])
def test_masks_lie_in_masks(base, tmp_path, naming):
    root = shutil.copytree(base, tmp_path / "scene")
    mask = np.zeros((48, 64), np.uint8)
    mask[:24] = 255
    for i in (1, 2):
        write_png(root / "masks" / naming.format(name=f"{i:03d}.png", stem=f"{i:03d}"), mask)
    train = load_scene(root, undistort=True).splits["train"]
    kept = {train.names[i]: train.mask(i) for i in range(len(train))}
    assert kept["001.png"].tolist() == (mask / 255).tolist()
    assert kept["003.png"] is None
    small = load_scene(root, DataConfig(downscale=2), undistort=True).splits["train"]
    assert small.mask(0).tolist() == (mask[::2, ::2] / 255).tolist()


def test_a_mask_of_another_size_is_refused(base, tmp_path):
    root = shutil.copytree(base, tmp_path / "scene")
    write_png(root / "masks" / "001.png", np.zeros((24, 64), np.uint8))
    with pytest.raises(UserError, match=r"masks/001\.png: the mask is 64x24, its image 64x48"):
        load_scene(root, undistort=True)


def test_a_mask_that_keeps_nothing_is_reported(base, tmp_path):
    root = shutil.copytree(base, tmp_path / "scene")
    write_png(root / "masks" / "001.png", np.zeros((48, 64), np.uint8))
    assert any("keep no pixel" in n and "'001.png'" in n for n in load_scene(root, undistort=True).notices)


def test_points_that_are_not_finite_are_dropped(base, tmp_path, known):
    root = shutil.copytree(base, tmp_path / "scene")
    path = root / "sparse/0/points3D.bin"
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack("<d", float("inf"))
    path.write_bytes(content)
    scene = load_scene(root, undistort=True)
    assert len(scene.points) == len(known.points) - 1
    assert any(notice.startswith("Warning: 1 point of") for notice in scene.notices)


def test_mixed_lenses_share_the_most_general_model(base, tmp_path, known):
    root = shutil.copytree(base, tmp_path / "scene")
    shutil.rmtree(root / "sparse")
    write_colmap_text(root / "sparse", known)
    cameras, images = root / "sparse/cameras.txt", root / "sparse/images.txt"
    cameras.write_text(cameras.read_text() + "8 SIMPLE_RADIAL 64 48 60 32 24 0.05\n")
    images.write_text(images.read_text().replace(" 7 003.png", " 8 003.png"))
    split = load_scene(root, undistort=False).splits["train"]
    assert split.cameras.model == "opencv"
    bent = dict(zip(split.names, split.cameras.distortion[:, 0].tolist(), strict=True))
    assert bent.pop("003.png") == pytest.approx(0.05)
    assert set(bent.values()) == {0.0}
    straight = load_scene(root, undistort=True).splits["train"]
    assert straight.cameras.model == "pinhole"
    cameras.write_text(cameras.read_text().replace("8 SIMPLE_RADIAL", "8 SIMPLE_RADIAL_FISHEYE"))
    with pytest.raises(UserError, match=r"'003\.png' is a fisheye"):
        load_scene(root, undistort=False)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_binary_models_are_read_or_refused(base, tmp_path, data):
    folder = tmp_path / "sparse"
    folder.mkdir(exist_ok=True)
    target = data.draw(st.sampled_from(("cameras.bin", "images.bin", "points3D.bin")))
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        content = bytearray((base / "sparse/0" / name).read_bytes())
        if name == target:
            for _ in range(data.draw(st.integers(1, 3))):
                at = data.draw(st.integers(0, len(content)))
                content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        (folder / name).write_bytes(content)
    model, refusal = result_or_refusal(lambda: read_model(folder, remedy="remedy"))
    if model is None:
        assert str(folder) in refusal
    else:
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert len(model.images) + len(model.points) < size / 40


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="0123456789 .-e#\n\tPINHOLEx", max_size=200), name=st.sampled_from(("cameras", "images")))
def test_random_text_models_are_read_or_refused(tmp_path, known, text, name):
    folder = tmp_path / "sparse"
    write_colmap_text(folder, known)
    (folder / f"{name}.txt").write_text(text)
    model, refusal = result_or_refusal(lambda: read_model(folder, remedy="remedy"))
    assert model is not None or str(folder) in refusal
