"""NeRF++: folders as splits, an intrinsic matrix per image, the frame of the files, and hostile files."""

import shutil

import numpy as np
import pytest
import torch
from data_scenes import (
    COUNT,
    FOCAL,
    HEIGHT,
    WIDTH,
    Known,
    assert_refused,
    intrinsics,
    link_out,
    write_matrix,
    write_nerfpp,
    write_png,
)

from nfc_splat.data import DataConfig, detect_format, load_scene
from nfc_splat.errors import UserError


@pytest.fixture
def root(known, tmp_path):
    write_nerfpp(tmp_path / "scene", known)
    return tmp_path / "scene"


def refuse(root, needle, **options):
    assert_refused(root, needle, format="nerfpp", **options)


def numbers(split) -> list[int]:
    return [int(name[-9:-4]) for name in split.names]


def test_folders_are_splits(root):
    scene = load_scene(root, undistort=True)
    assert {name: numbers(split) for name, split in scene.splits.items()} == {
        "train": [2, 3, 6, 7, 10, 11],
        "val": [1, 5, 9],
        "test": [0, 4, 8],
    }
    assert scene.splits["val"].names[0] == "validation/rgb/00001.png"
    shutil.rmtree(root / "validation")
    assert set(load_scene(root, undistort=True).splits) == {"train", "test"}


def test_without_test_images_some_are_held_out(root):
    """Numbers are not taken from validation."""
    shutil.rmtree(root / "test")
    scene = load_scene(root, undistort=True)
    assert {name: numbers(split) for name, split in scene.splits.items()} == {"train": [3, 6, 7, 10, 11], "test": [2]}
    assert any("There is no test/pose/" in notice for notice in scene.notices)


def test_every_image_has_its_own_intrinsics(tmp_path, known):
    """Another focal length and principal point per image, and points still lie where they were drawn."""
    write_nerfpp(tmp_path, known)
    for path in tmp_path.rglob("intrinsics/*.txt"):
        K = intrinsics()
        K[0, 0] += int(path.stem)
        K[1, 2] -= 0.5 * int(path.stem)
        write_matrix(path, K)
    scene = load_scene(tmp_path, undistort=True)
    point = torch.from_numpy(known.points[:1]).float()
    for split in scene.splits.values():
        pixels, _ = split.cameras.project(point)
        for i, number in enumerate(numbers(split)):
            x, y = known.project(number)[0]
            moved = [(x - WIDTH / 2) * (FOCAL + number) / FOCAL + WIDTH / 2, y - 0.5 * number]
            assert pixels[i, 0].tolist() == pytest.approx(moved, abs=1e-3)
    assert scene.principal_point_shift == 0


def test_the_frame_is_not_turned(tmp_path, known):
    """Cameras that vary least along a slanted axis stay where the files have them."""
    tilt = np.eye(4)
    tilt[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    tilt[:3, :3] *= np.sign(np.linalg.det(tilt[:3, :3]))
    tilted = Known()
    tilted.poses = tilt @ known.poses
    write_nerfpp(tmp_path, tilted)
    train = load_scene(tmp_path, undistort=True).splits["train"]
    expected = np.linalg.inv(tilted.poses[numbers(train)])
    torch.testing.assert_close(train.cameras.viewmats, torch.from_numpy(expected).float(), atol=1e-6, rtol=0)


def test_the_files_state_no_extent(root):
    scene = load_scene(root, undistort=True)
    assert scene.near_far is None
    assert scene.bounds is None
    assert scene.points is None


def test_detection_says_which_folder_is_missing(root):
    assert detect_format(root)[0] == "nerfpp"
    shutil.rmtree(root / "train" / "intrinsics")
    with pytest.raises(UserError, match=r"nerfpp: no train/intrinsics/ folder"):
        detect_format(root)


def test_images_without_a_pose_and_poses_without_an_image(root):
    (root / "train" / "pose" / "00003.txt").unlink()
    (root / "test" / "rgb" / "00004.png").unlink()
    scene = load_scene(root, undistort=True)
    assert numbers(scene.splits["train"]) == [2, 6, 7, 10, 11]
    assert numbers(scene.splits["test"]) == [0, 8]
    assert any("images without file in train/pose/ are left out: '00003'" in notice for notice in scene.notices)
    assert any("'test/rgb/00004.png'" in notice for notice in scene.notices)


def text(name, content):
    return lambda root: (root / name).write_text(content)


def without(pattern):
    return lambda root: [path.unlink() for path in root.glob(pattern)]


def matrices(pattern, change):
    def spoil(root):
        for path in root.glob(pattern):
            write_matrix(path, change(np.loadtxt(path).reshape(4, 4)))

    return spoil


def skewed(K):
    return K + 9 * np.eye(4, k=1)


LEAVES = "leaves the scene folder"
CASES = {
    "pose of words": (text("train/pose/00002.txt", "one " * 16), "train/pose/00002.txt"),
    "pose of twelve numbers": (text("test/pose/00000.txt", "1 0 0 0 " * 3), "expected 16 (a 4x4 matrix)"),
    "pose endless": (text("train/pose/00002.txt", "1 " * 20_000), "expected a few numbers"),
    "poses not finite": (matrices("*/pose/*.txt", lambda pose: pose + np.inf), "holds NaN or Inf"),
    "poses mirrored": (matrices("*/pose/*.txt", lambda pose: pose @ np.diag([1.0, -1, 1, 1])), "left-handed"),
    "no training pose": (without("train/pose/*"), "train/pose: holds no pose"),
    "no intrinsics for one": (without("test/intrinsics/00008.txt"), "00008.txt: there is no such file"),
    "intrinsics of words": (text("train/intrinsics/00002.txt", "K " * 16), "train/intrinsics/00002.txt"),
    "intrinsics 3x3": (text("train/intrinsics/00002.txt", "60 0 32 0 60 24 0 0 1"), "holds 9 numbers"),
    "intrinsics not finite": (matrices("train/intrinsics/00002.txt", lambda K: K + np.nan), "not finite"),
    "intrinsics skewed": (matrices("train/intrinsics/00002.txt", skewed), "have skew 9"),
    "focal is negative": (
        matrices("train/intrinsics/00002.txt", lambda K: K * np.diag([-2.0, 0, 0, 0]) + K),
        "expected positive pixels",
    ),
    "intrinsics negated": (matrices("train/intrinsics/00002.txt", lambda K: -K), "expected the rows `fx 0 cx`"),
    "intrinsics transposed": (matrices("train/intrinsics/00002.txt", lambda K: K.T), "transposed or scaled?"),
    "centre far away": (
        matrices("train/intrinsics/*.txt", lambda K: K + np.outer([1, 0, 0, 0], [0, 0, 5000, 0])),
        "lies far outside",
    ),
    "pose leaves the scene": (link_out("train/pose/00003.txt"), LEAVES),
    "intrinsics leave the scene": (link_out("train/intrinsics/00003.txt"), LEAVES),
    "image leaves the scene": (link_out("test/rgb/00004.png"), LEAVES),
    "a split leaves the scene": (link_out("validation"), LEAVES),
    "most images gone": (without("*/rgb/*[2-9].png"), "images have no file"),
    "most poses gone": (without("train/pose/*[2-7].txt"), "4 of 6 images have no file in train/pose/"),
    "an image in two formats": (
        lambda root: shutil.copy(root / "train/rgb/00002.png", root / "train/rgb/00002.jpeg"),
        "differ in the extension alone",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_scenes(root, case):
    spoil, needle = CASES[case]
    spoil(root)
    refuse(root, needle)


@pytest.mark.parametrize("factor", [2, 3])
def test_intrinsics_for_smaller_images_are_suspected(root, known, factor):
    """Enlarged images: the principal point moves to a quarter or a sixth of the width."""
    for path in root.rglob("rgb/*.png"):
        write_png(path, np.zeros((factor * HEIGHT, factor * WIDTH, 3), np.uint8))
    (warning,) = [n for n in load_scene(root, undistort=True).notices if "far from the middle" in n]
    assert warning.startswith("Warning: ")


def test_images_of_different_sizes_are_fine(root, known):
    """A larger image with its own matrix beside the others."""
    large = np.repeat(np.repeat(known.image(2), 2, 0), 2, 1)
    write_png(root / "train" / "rgb" / "00002.png", large)
    write_matrix(root / "train" / "intrinsics" / "00002.txt", np.diag([2.0, 2, 1, 1]) @ intrinsics())
    train = load_scene(root, undistort=True).splits["train"]
    assert train.cameras.sizes[0].tolist() == [2 * WIDTH, 2 * HEIGHT]
    assert train.cameras.Ks[0, 0, 0] == 2 * FOCAL
    assert len(load_scene(root, DataConfig(downscale=2), undistort=True).splits["train"]) == COUNT // 2
