"""Broken and malicious COLMAP models: each is refused by a `UserError` of one line that names the file."""

import shutil
import struct

import pytest
from data_scenes import COUNT, Known, write_colmap, write_colmap_binary, write_colmap_text

from nfc_splat.data import load_scene
from nfc_splat.errors import UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound scene to spoil."""
    root = tmp_path_factory.mktemp("good")
    write_colmap(root / "colmap", Known())
    load_scene(root / "colmap", undistort=True)
    return root


def refuse(root, needle):
    with pytest.raises(UserError) as caught:
        load_scene(root, undistort=True)
    message = str(caught.value)
    assert needle in message
    assert "\n" not in message
    assert len(message) < 2000


SPARSE = "sparse/0/"


def overwrite(name, position, data):
    def change(root):
        path = root / SPARSE / name
        content = bytearray(path.read_bytes())
        content[position : position + len(data)] = data
        path.write_bytes(content)

    return change


def cut(name, keep):
    def change(root):
        path = root / SPARSE / name
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

    return change


def camera_model(number, parameters):
    return lambda root: write_colmap_binary(root / SPARSE, Known(), camera=("", number, parameters))


def image_name(name):
    """Rename the first image of images.bin, which has a 7-byte name."""

    def change(root):
        path = root / SPARSE / "images.bin"
        content = path.read_bytes()
        path.write_bytes(content[: 8 + 64] + name + content[8 + 64 + 7 :])

    return change


HUGE = struct.pack("<Q", 2**63)
IMAGE_BYTES = 64 + 8 + 8 + 48
NAN = struct.pack("<d", float("nan"))

COLMAP = {
    "count of cameras": (overwrite("cameras.bin", 0, HUGE), "cameras.bin"),
    "count of images": (overwrite("images.bin", 0, HUGE), "images.bin"),
    "count of points": (overwrite("points3D.bin", 0, HUGE), "points3D.bin"),
    "count one too many": (overwrite("images.bin", 0, struct.pack("<Q", COUNT + 1)), "images.bin"),
    "count of observations": (overwrite("images.bin", 8 + 64 + 8, HUGE), "images.bin"),
    "track length": (overwrite("points3D.bin", 8 + 43, HUGE), "points3D.bin"),
    "no images": (overwrite("images.bin", 0, struct.pack("<Q", 0)), "images.bin"),
    "no cameras": (overwrite("cameras.bin", 0, struct.pack("<Q", 0)), "images.bin"),
    "empty cameras": (cut("cameras.bin", 0), "cameras.bin"),
    "empty images": (cut("images.bin", 0), "images.bin"),
    "cut cameras": (cut("cameras.bin", 0.7), "cameras.bin"),
    "cut images": (cut("images.bin", 0.7), "images.bin"),
    "cut points": (cut("points3D.bin", 0.7), "points3D.bin"),
    "name without end": (
        lambda root: (root / SPARSE / "images.bin").write_bytes(
            struct.pack("<QI7dI", 1, 1, *[1.0] * 7, 7) + b"x" * 9999
        ),
        "images.bin",
    ),
    "name not UTF-8": (image_name(b"\xff\xfe\xfd"), "images.bin"),
    "name leaves the scene": (image_name(b"../../../../etc/passwd"), SPARSE[:-1]),
    "unknown camera number": (camera_model(99, [1.0] * 4), "cameras.bin"),
    "negative camera number": (camera_model(-1, [1.0] * 4), "cameras.bin"),
    "model that needs undistortion": (camera_model(7, [60.0, 60.0, 32.0, 24.0, 0.5]), "colmap image_undistorter"),
    "rational model": (camera_model(6, [60.0, 60.0, 32.0, 24.0, *[0.0] * 7, 0.1]), "colmap image_undistorter"),
    "parameter not finite": (camera_model(1, [60.0, float("nan"), 32.0, 24.0]), "cameras.bin"),
    "negative focal": (camera_model(1, [-60.0, 60.0, 32.0, 24.0]), "cameras.bin"),
    "absurd distortion": (camera_model(3, [60.0, 32.0, 24.0, 1e9, 0.0]), "cameras.bin"),
    "zero size": (lambda root: write_colmap_binary(root / SPARSE, Known(), size=(0, 48)), "cameras.bin"),
    "wrong size": (lambda root: write_colmap_binary(root / SPARSE, Known(), size=(65, 48)), "cameras.bin"),
    "endless size": (lambda root: write_colmap_binary(root / SPARSE, Known(), size=(2**63, 48)), "cameras.bin"),
    "another camera id": (overwrite("images.bin", 8 + 60, struct.pack("<I", 1)), "images.bin"),
    "poses not finite": (
        lambda root: [overwrite("images.bin", 8 + 4 + i * IMAGE_BYTES, NAN)(root) for i in range(3)],
        SPARSE[:-1],
    ),
    "quaternions of zero": (
        lambda root: [overwrite("images.bin", 8 + 4 + i * IMAGE_BYTES, bytes(32))(root) for i in range(3)],
        SPARSE[:-1],
    ),
    "no image folder": (lambda root: shutil.rmtree(root / "images"), SPARSE[:-1]),
}


def test_an_absolute_colmap_name_is_looked_for_below_images(good, tmp_path):
    root = shutil.copytree(good / "colmap", tmp_path / "scene")
    image_name(b"/etc/hostname")(root)
    scene = load_scene(root, undistort=True)
    assert any("1 of 12 images have no file: '/etc/hostname'" in notice for notice in scene.notices)


@pytest.mark.parametrize("case", COLMAP)
def test_colmap_binary(good, tmp_path, case):
    root = shutil.copytree(good / "colmap", tmp_path / "scene")
    change, needle = COLMAP[case]
    change(root)
    refuse(root, needle)


def rewrite(name, old, new):
    def change(root):
        path = root / SPARSE / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


COLMAP_TEXT = {
    "camera without parameters": (rewrite("cameras.txt", "7 PINHOLE 64 48", "7 PINHOLE 64 48\n#"), "cameras.txt"),
    "camera twice": (rewrite("cameras.txt", "# cameras", "7 PINHOLE 64 48 1 1 1 1"), "cameras.txt"),
    "unknown model": (rewrite("cameras.txt", "PINHOLE", "WIDE"), "cameras.txt"),
    "unsupported model": (
        rewrite("cameras.txt", "PINHOLE 64 48 60.0 60.0 32.0 24.0", "FOV 64 48 60 60 32 24 0.1"),
        "image_undistorter",
    ),
    "size is text": (rewrite("cameras.txt", "64 48", "wide 48"), "cameras.txt"),
    "parameter is text": (rewrite("cameras.txt", "60.0", "focal"), "cameras.txt"),
    "no camera": (lambda root: (root / SPARSE / "cameras.txt").write_text("# nothing\n"), "images.txt"),
    "no image": (lambda root: (root / SPARSE / "images.txt").write_text("# nothing\n"), "images.txt"),
    "image line cut": (lambda root: (root / SPARSE / "images.txt").write_text("1 1 0 0 0 0 0\n"), "images.txt"),
    "pose is text": (
        lambda root: (root / SPARSE / "images.txt").write_text("1 a 0 0 0 0 0 0 7 000.png\n"),
        "images.txt",
    ),
    "camera is text": (
        lambda root: (root / SPARSE / "images.txt").write_text("1 1 0 0 0 0 0 0 x 000.png\n"),
        "images.txt",
    ),
    "unknown camera": (rewrite("images.txt", " 7 000.png", " 8 000.png"), "images.txt"),
    "name leaves the scene": (rewrite("images.txt", " 7 000.png", " 7 ../../x.png"), SPARSE[:-1]),
    "point line cut": (lambda root: (root / SPARSE / "points3D.txt").write_text("1 2 3\n"), "points3D.txt"),
    "point is text": (lambda root: (root / SPARSE / "points3D.txt").write_text("1 a b c 1 2 3 0.5\n"), "points3D.txt"),
    "colour is too large": (
        lambda root: (root / SPARSE / "points3D.txt").write_text("1 1 1 1 1 2 999 0.5\n"),
        "points3D.txt",
    ),
    "colour is a fraction": (
        lambda root: (root / SPARSE / "points3D.txt").write_text("1 1 1 1 1 2 0.5 0.5\n"),
        "points3D.txt",
    ),
    "binary in text": (lambda root: (root / SPARSE / "images.txt").write_bytes(b"\xff\xfe\x00" * 100), "images.txt"),
}


@pytest.mark.parametrize("case", COLMAP_TEXT)
def test_colmap_text(good, tmp_path, case):
    root = tmp_path / "scene"
    shutil.copytree(good / "colmap" / "images", root / "images")
    write_colmap_text(root / SPARSE, Known())
    change, needle = COLMAP_TEXT[case]
    change(root)
    refuse(root, needle)
