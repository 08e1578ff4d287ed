"""NSVF: both forms of the intrinsics, splits by prefix, box and depth range, and hostile files."""

import os
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from data_scenes import (
    BOX,
    COUNT,
    FOCAL,
    HEIGHT,
    WIDTH,
    assert_refused,
    intrinsics,
    link_out,
    write_matrix,
    write_nsvf,
    write_png,
)

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.suspects import scene_findings


@pytest.fixture
def root(known, tmp_path):
    write_nsvf(tmp_path / "scene", known)
    return tmp_path / "scene"


def refuse(root, needle, **options):
    assert_refused(root, needle, format="nsvf", **options)


def numbers(split) -> list[int]:
    return [int(name[-8:-4]) for name in split.names]


MATRIX_FORMS = {
    "4x4": lambda path, K: write_matrix(path, K),
    "4x4 in one line": lambda path, K: write_matrix(path, K, lines=False),
    "3x3": lambda path, K: write_matrix(path, K[:3, :3]),
}


@pytest.mark.parametrize("form", [*MATRIX_FORMS, "line", "line without zero", "line alone", "line and flag"])
def test_intrinsics_in_every_form(root, known, form):
    """Different focal lengths and an off-centre principal point; the line has one focal length only."""
    K = intrinsics()
    K[0, 2], K[1, 2] = 30.0, 25.0
    if form in MATRIX_FORMS:
        K[1, 1] = FOCAL + 1
        MATRIX_FORMS[form](root / "intrinsics.txt", K)
    else:
        end = "" if "alone" in form else f"0. 0. 0.\n0.\n1.\n{HEIGHT} {WIDTH}\n" + "1\n" * ("flag" in form)
        zero = "" if "without" in form else " 0."
        (root / "intrinsics.txt").write_text(f"{FOCAL} 30.0 25.0{zero}\n{end}")
    scene = load_scene(root, undistort=True)
    for split in scene.splits.values():
        for K_read in split.cameras.Ks:
            torch.testing.assert_close(K_read, torch.from_numpy(K[:3, :3]).float())
    assert scene.principal_point_shift == 0


def test_a_byte_order_mark_is_no_number(root):
    (root / "intrinsics.txt").write_text(f"{FOCAL} 32 24 0\n", encoding="utf-8-sig")
    assert load_scene(root, undistort=True).splits["train"].cameras.Ks[0, 0, 0] == FOCAL


def test_the_size_is_found_before_a_flag(root):
    """Some files of Scene Representation Networks end with a line that says which way the poses lead."""
    (root / "intrinsics.txt").write_text(f"{FOCAL} 32 24 0\n0 0 0\n0\n1\n{HEIGHT + 9} {WIDTH}\n1\n")
    refuse(root, f"but the intrinsics in {root / 'intrinsics.txt'} are for {WIDTH}x{HEIGHT + 9}")


@pytest.mark.parametrize("matrix", [True, False])
def test_one_set_of_intrinsics_fits_no_two_sizes(tmp_path, known, matrix):
    """Nothing states a size here, so that each image would be taken to be the one that the numbers are for."""
    write_nsvf(tmp_path, known, matrix=matrix)
    if not matrix:
        (tmp_path / "intrinsics.txt").write_text(f"{FOCAL} 32 24 0\n")
    write_png(tmp_path / "rgb" / "0_0003.png", np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8))
    refuse(tmp_path, "0_0003.png: 128x96, but 'rgb/0_0000.png' is 64x48 with the same intrinsics")


def test_points_are_seen_where_they_were_drawn(tmp_path, known):
    """The form of Tanks and Temples: a matrix, and 1 for test."""
    write_nsvf(tmp_path, known, matrix=True, prefixes="0001")
    scene = load_scene(tmp_path, undistort=True)
    points, seen = torch.from_numpy(known.points).float(), 0
    for split in scene.splits.values():
        pixels, _ = split.cameras.project(points)
        for i, number in enumerate(numbers(split)):
            visible = known.visible(number)
            columns, rows = pixels[i].floor().long().unbind(-1)
            np.testing.assert_array_equal(split.image(i)[rows, columns].numpy()[visible], known.colors[visible])
            seen += int(visible.sum())
    assert seen > COUNT * 20


def test_splits_follow_the_prefix(tmp_path, known):
    write_nsvf(tmp_path / "three", known)
    scene = load_scene(tmp_path / "three", undistort=True)
    assert {name: numbers(split) for name, split in scene.splits.items()} == {
        "train": [0, 3, 6, 9],
        "val": [1, 4, 7, 10],
        "test": [2, 5, 8, 11],
    }
    write_nsvf(tmp_path / "two", known, prefixes="0001")
    scene = load_scene(tmp_path / "two", undistort=True)
    assert set(scene.splits) == {"train", "test"}
    assert numbers(scene.splits["test"]) == [3, 7, 11]
    assert any("begin with 1_ are the test images" in notice for notice in scene.notices)
    write_nsvf(tmp_path / "one", known, prefixes="0")
    scene = load_scene(tmp_path / "one", undistort=True)
    assert numbers(scene.splits["test"]) == [0, 8]


def test_names_without_a_prefix_have_no_split(root):
    for path in [*(root / "rgb").iterdir(), *(root / "pose").iterdir()]:
        path.rename(path.with_name(f"view{path.name[1:]}"))
    assert numbers(load_scene(root, undistort=True).splits["test"]) == [0, 8]
    (root / "rgb" / "view_0003.png").rename(root / "rgb" / "0_0003.png")
    (root / "pose" / "view_0003.txt").rename(root / "pose" / "0_0003.txt")
    refuse(root, "do not begin with 0_, 1_ or 2_")


def test_the_box_is_kept(root):
    scene = load_scene(root, undistort=True)
    assert scene.bounds.dtype == torch.float32
    torch.testing.assert_close(scene.bounds, torch.from_numpy(BOX).float())
    (root / "bbox.txt").write_text(" ".join(map(str, BOX.ravel())))  # without the voxel size
    torch.testing.assert_close(load_scene(root, undistort=True).bounds, scene.bounds)
    (root / "bbox.txt").unlink()
    without = load_scene(root, undistort=True)
    assert without.bounds is None
    assert any("no bbox.txt" in notice for notice in without.notices)
    assert without.stated != scene.stated


def test_the_depth_range_is_dvgos(tmp_path, known):
    """The largest distance between training cameras, by looking at every pair."""
    centers = known.poses[:, :3, 3]
    write_nsvf(tmp_path / "line", known)
    far = max(np.linalg.norm(centers[a] - centers[b]) for a, b in combinations((0, 3, 6, 9), 2))
    assert load_scene(tmp_path / "line", undistort=True).near_far == pytest.approx((0.05 * far, far))
    write_nsvf(tmp_path / "matrix", known, matrix=True, prefixes="0")
    far = max(np.linalg.norm(a - b) for a, b in combinations(centers, 2))
    assert load_scene(tmp_path / "matrix", undistort=True).near_far == pytest.approx((0.0, far))


def test_transparent_images_lie_over_white(root, known):
    rgba = np.concatenate([known.image(0), np.zeros((HEIGHT, WIDTH, 1), np.uint8)], 2)
    write_png(root / "rgb" / "0_0000.png", rgba)
    scene = load_scene(root, undistort=True)
    assert scene.background.tolist() == [1, 1, 1]
    train = scene.splits["train"]
    assert train.target(0, scene.background).min() == 1


def test_objects_are_cut_out_even_of_opaque_images(root):
    scene = load_scene(root, undistort=True)
    assert (scene.has_alpha, scene.cut_out) == (False, True)


def test_images_reduced_since_are_noticed(root, known):
    """The last line says 96x128, the images are 48x64."""
    (root / "intrinsics.txt").write_text(f"{2 * FOCAL} {WIDTH} {HEIGHT} 0.\n0 0 0\n0\n1\n{2 * HEIGHT} {2 * WIDTH}\n")
    scene = load_scene(root, undistort=True)
    torch.testing.assert_close(scene.splits["train"].cameras.Ks[0], torch.from_numpy(intrinsics()[:3, :3]).float())
    assert any(n.startswith("Warning") and "intrinsics were scaled" in n for n in scene.notices)


def test_intrinsics_for_larger_images_are_suspected(root):
    """A matrix does not say what size it is for; its principal point in the corner does."""
    K = intrinsics()
    K[:2, 2] *= 1.9
    write_matrix(root / "intrinsics.txt", K)
    (warning,) = [n for n in load_scene(root, undistort=True).notices if "far from the middle" in n]
    assert warning.startswith("Warning: ")
    assert "another size?" in warning


def test_images_without_a_pose_and_poses_without_an_image(root):
    (root / "pose" / "0_0003.txt").unlink()
    (root / "rgb" / "2_0005.png").unlink()
    scene = load_scene(root, undistort=True)
    assert numbers(scene.splits["train"]) == [0, 6, 9]
    assert numbers(scene.splits["test"]) == [2, 8, 11]
    assert any("images without file in pose/ are left out: '0_0003'" in notice for notice in scene.notices)
    assert any("1 of 11 images have no file: 'rgb/2_0005.png'" in notice for notice in scene.notices)


def test_the_doctor_sees_a_box_that_no_camera_sees(root):
    scene = load_scene(root, undistort=True)
    extent = {finding.subject: finding for finding in scene_findings(scene, None)["Extent"]}
    assert extent["bounds"].text == "[-0.7, 0.6] x [-0.65, 0.7] x [-0.6, 0.75]"
    assert extent["visibility"].level == "ok"
    (root / "bbox.txt").write_text("10 10 10 11 11 11 0.1")
    extent = {finding.subject: finding for finding in scene_findings(load_scene(root, undistort=True), None)["Extent"]}
    assert extent["visibility"].level == "bad"
    assert "cameras and box do not fit together" in extent["visibility"].text


def test_the_intrinsics_name_the_scene(root):
    assert load_scene(root / "intrinsics.txt", undistort=True).root == root.resolve()


def text(name, content):
    def spoil(root):
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def poses(change):
    def spoil(root):
        for path in (root / "pose").iterdir():
            write_matrix(path, change(np.loadtxt(path)))

    return spoil


def to_folder(root):
    (root / "pose" / "0_0000.txt").unlink()
    (root / "pose" / "0_0000.txt").mkdir()


LEAVES = "leaves the scene folder"
SIXTEEN = "expected 16 (a 4x4 matrix)"
ROWS = {
    "3x4": [[60, 0, 32, 0], [0, 60, 24, 0], [0, 0, 1, 0]],
    "2x3": [[60, 0, 32], [0, 60, 24]],
    "4x3": [[60, 0, 32], [0, 60, 24], [0, 0, 1], [0, 0, 0]],
    "5x4": [[60, 0, 32, 0], [0, 60, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]],
    "transposed": [[60, 0, 0], [0, 60, 0], [32, 24, 1]],
    "scaled": [[120, 0, 64], [0, 120, 48], [0, 0, 2]],
    "for a camera that looks back": [[60, 0, 32], [0, 60, 24], [0, 0, -1]],
    "a projection": [[60, 0, 32, 5], [0, 60, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    "sheared": [[60, 0, 32], [7, 60, 24], [0, 0, 1]],
}


@pytest.mark.parametrize("shape", ROWS)
def test_matrices_that_are_no_intrinsics_are_refused(root, shape):
    """Read as a line `f cx cy 0`, the first rows of those that are not square would give a principal point at 0."""
    write_matrix(root / "intrinsics.txt", np.array(ROWS[shape], float))
    square = len(ROWS[shape]) == len(ROWS[shape][0])
    refuse(
        root, "expected the rows `fx 0 cx`, `0 fy cy`" if square else "expected a matrix (4x4 or 3x3), or a first line"
    )


def odd_name(root):
    """A name that would break a message in two and colour the terminal."""
    for folder, suffix in (("rgb", ".png"), ("pose", ".txt")):
        (root / folder / f"0_0003{suffix}").rename(root / folder / f"0_0003\n\x1b[31m{suffix}")


def undecodable_name(root):
    os.rename(root / "rgb" / "0_0003.png", os.fsencode(root / "rgb") + b"/0_\xff.png")
    os.rename(root / "pose" / "0_0003.txt", os.fsencode(root / "pose") + b"/0_\xff.txt")


CASES = {
    "a line break in a name": (odd_name, "the path 'rgb/0_0003\\n\\x1b[31m.png' holds line breaks"),
    "an undecodable name": (undecodable_name, "what is not UTF-8; rename it"),
    "pose of one long word": (text("pose/0_0000.txt", "x" * 16_000), f"{'x' * 80!r} is not a number"),
    "focal is next to nothing": (text("intrinsics.txt", "1e-30 32 24 0"), "are they in pixels?"),
    "focal is beyond any lens": (text("intrinsics.txt", "1e8 32 24 0"), "are they in pixels?"),
    "focal is normalised": (text("intrinsics.txt", "0.5 32 24 0"), "are they in pixels?"),
    "pose of words": (text("pose/0_0000.txt", "one " * 16), "0_0000.txt"),
    "pose too short": (text("pose/0_0000.txt", "1 0 0"), SIXTEEN),
    "pose too long": (text("pose/0_0000.txt", "1 " * 17), SIXTEEN),
    "pose empty": (text("pose/0_0000.txt", ""), SIXTEEN),
    "pose binary": (text("pose/0_0000.txt", bytes(range(256))), "cannot be read as text"),
    "pose endless": (text("pose/0_0000.txt", "1 " * 100_000), "200000 bytes, expected a few numbers"),
    "pose is a folder": (to_folder, "0_0000.txt: there is no such file"),
    "poses not finite": (poses(lambda pose: pose * np.nan), "holds NaN or Inf"),
    "poses mirrored": (poses(lambda pose: pose @ np.diag([-1.0, 1, 1, 1])), "left-handed"),
    "poses scaled": (poses(lambda pose: pose @ np.diag([2.0, 2, 2, 1])), "remove scale and shear"),
    "poses far away": (poses(lambda pose: pose + np.eye(4)[3] * np.array([[1e12], [0], [0], [0]])), "units away"),
    "no pose": (lambda root: [path.unlink() for path in (root / "pose").iterdir()], "holds no pose"),
    "most poses gone": (
        lambda root: [path.unlink() for path in sorted((root / "pose").iterdir())[:7]],
        "7 of 12 images have no file in pose/",
    ),
    "most images gone": (
        lambda root: [path.unlink() for path in sorted((root / "rgb").iterdir())[:7]],
        "7 of 12 images have no file",
    ),
    "an image in two formats": (
        lambda root: shutil.copy(root / "rgb/0_0000.png", root / "rgb/0_0000.jpg"),
        "'0_0000.jpg' and '0_0000.png' differ in the extension alone",
    ),
    "pose leaves the scene": (link_out("pose/0_0000.txt"), LEAVES),
    "poses leave the scene": (link_out("pose"), LEAVES),
    "image leaves the scene": (link_out("rgb/0_0000.png"), LEAVES),
    "intrinsics leave the scene": (link_out("intrinsics.txt"), LEAVES),
    "box leaves the scene": (link_out("bbox.txt"), LEAVES),
    "intrinsics empty": (text("intrinsics.txt", "\n"), "intrinsics.txt: 0 numbers in 0 lines, expected a"),
    "intrinsics of two numbers": (text("intrinsics.txt", "600 400"), "2 numbers in 1 line, expected a matrix"),
    "intrinsics of words": (text("intrinsics.txt", "focal 32 24 0"), "intrinsics.txt"),
    "intrinsics not finite": (text("intrinsics.txt", "nan 32 24 0"), "not finite"),
    "intrinsics beyond reason": (text("intrinsics.txt", "1e300 32 24 0"), "beyond 1e+09"),
    "focal is zero": (text("intrinsics.txt", "0 32 24 0"), "expected positive pixels"),
    "focal is negative": (text("intrinsics.txt", "-60 32 24 0"), "expected positive pixels"),
    "centre far away": (text("intrinsics.txt", "60 3200 24 0"), "lies far outside"),
    "size is a fraction": (text("intrinsics.txt", "60 32 24 0\n48.5 64"), "expected height and width"),
    "size is huge": (text("intrinsics.txt", "60 32 24 0\n1e12 64"), "expected height and width"),
    "size is wrong": (text("intrinsics.txt", "60 32 24 0\n50 64"), "but the intrinsics in"),
    "skew": (lambda root: write_matrix(root / "intrinsics.txt", intrinsics() + np.diag([9.0, 0, 0], 1)), "skew 9"),
    "box of five numbers": (text("bbox.txt", "0 0 0 1 1"), "holds 5 numbers"),
    "box of words": (text("bbox.txt", "a b c d e f"), "bbox.txt"),
    "box not finite": (text("bbox.txt", "0 0 0 1 1 nan"), "expected finite numbers"),
    "box inside out": (text("bbox.txt", "0 0 0 1 -1 1 0.1"), "expected the lowest corner, then the highest"),
    "box without size": (text("bbox.txt", "0 0 0 1 0 1 0.1"), "expected the lowest corner, then the highest"),
    "box beyond reason": (text("bbox.txt", "0 0 0 1 1 1e300 0.1"), "expected finite numbers"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_scenes(root, case):
    spoil, needle = CASES[case]
    spoil(root)
    refuse(root, needle)


def test_most_poses_gone_may_be_accepted(root):
    for path in sorted((root / "pose").iterdir())[-7:]:
        path.unlink()
    scene = load_scene(root, DataConfig(allow_missing=True), undistort=True)
    assert sum(map(len, scene.splits.values())) == 5
