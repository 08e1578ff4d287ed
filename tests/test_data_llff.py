"""LLFF: rows and names, which size the focal length is for, and hostile `poses_bounds.npy` files."""

import os
import shutil

import numpy as np
import pytest
import torch
from data_scenes import (
    COUNT,
    FOCAL,
    HEIGHT,
    WIDTH,
    assert_refused,
    link_out,
    llff_rows,
    write_colmap,
    write_llff,
    write_png,
)

from nfc_splat.data import DataConfig, detect_format, load_scene


@pytest.fixture
def root(known, tmp_path):
    write_llff(tmp_path / "scene", known)
    return tmp_path / "scene"


def refuse(root, needle, **options):
    assert_refused(root, needle, format="llff", **options)


def reduced(picture: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks."""
    height, width = (side // factor * factor for side in picture.shape[:2])
    blocks = picture[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)


def write_reduced(root, known, factor, name="image{:03d}.png") -> None:
    """images_N with names of their own, as in the scenes that LLFF's authors give away."""
    for i in range(COUNT):
        write_png(root / f"images_{factor}" / name.format(i), reduced(known.image(i), factor))


def test_axes_and_frame_are_those_of_the_file(tmp_path):
    """A row written out by hand: the camera looks along the world's y from (1, 2, 3), x to the right, z up."""
    down, right, backwards = [0, 0, -1], [1, 0, 0], [0, -1, 0]
    row = np.array([down, right, backwards, [1, 2, 3], [32, 40, 50]]).T.ravel().tolist()
    np.save(tmp_path / "poses_bounds.npy", np.array([[*row, 2.0, 9.0]] * 3))
    for i in range(3):
        write_png(tmp_path / "images" / f"{i}.png", np.full((32, 40, 3), 9 * i, np.uint8))
    scene = load_scene(tmp_path, undistort=True)
    camera = scene.splits["test"].cameras
    pixels, depths = camera.project(torch.tensor([[1.0, 12, 3], [1 + 2, 12, 3], [1, 12, 3 + 2]]))
    torch.testing.assert_close(depths[0], torch.full((3,), 10.0))
    torch.testing.assert_close(pixels[0], torch.tensor([[20.0, 16], [20 + 10, 16], [20, 16 - 10]]))
    torch.testing.assert_close(camera.centers[0], torch.tensor([1.0, 2, 3]))
    assert scene.near_far == (2.0, 9.0)
    assert scene.bounds is None
    assert scene.principal_point_shift == 0


def test_the_depth_range_spans_all_rows(root):
    near, far = load_scene(root, undistort=True).near_far
    assert (near, far) == pytest.approx((1.0, 5.11))


def test_the_principal_point_is_the_middle_at_odd_sizes_too(tmp_path, known):
    rows = llff_rows(known)
    rows[:, [4, 9]] = 41, 63
    for i in range(COUNT):
        write_png(tmp_path / "images" / f"{i:02d}.png", np.full((41, 63, 3), i, np.uint8))
    np.save(tmp_path / "poses_bounds.npy", rows)
    K = load_scene(tmp_path, undistort=True).splits["train"].cameras.Ks[0]
    assert K.tolist() == [[FOCAL, 0, 31.5], [0, FOCAL, 20.5], [0, 0, 1]]


@pytest.mark.parametrize("factor", [2, 3])
def test_reduced_copies_keep_the_rays(root, known, factor):
    """The focal length is for images/; it is scaled per axis to the copy's size, 21x16 for 64x48 at 3."""
    write_reduced(root, known, factor)
    scene = load_scene(root, DataConfig(downscale=factor), undistort=True)
    train = scene.splits["train"]
    assert scene.resampler == f"images_{factor}"
    assert train.names[0] == "001.png"
    assert any("have other names" in notice for notice in scene.notices)
    width, height = WIDTH // factor, HEIGHT // factor
    assert (train.cameras.width, train.cameras.height) == (width, height)
    np.testing.assert_array_equal(train.image(0).numpy(), reduced(known.image(1), factor))
    points = torch.from_numpy(known.points).float()
    pixels = train.cameras.project(points)[0][0].numpy()
    np.testing.assert_allclose(pixels, known.project(1) * [width / WIDTH, height / HEIGHT], atol=1e-4)


def test_copies_of_the_same_names_are_paired_by_name(root, known):
    write_reduced(root, known, 2, "{:03d}.png")
    scene = load_scene(root, DataConfig(downscale=2), undistort=True)
    assert scene.resampler == "images_2"
    assert not any("other names" in notice for notice in scene.notices)


def test_too_few_copies_are_not_used(root, known):
    write_reduced(root, known, 2)
    (root / "images_2" / "image005.png").unlink()
    scene = load_scene(root, DataConfig(downscale=2), undistort=True)
    assert scene.resampler == "area"
    assert any("lacks" in notice for notice in scene.notices)


def test_copies_alone_suffice_when_they_are_asked_for(root, known):
    write_reduced(root, known, 2)
    shutil.rmtree(root / "images")
    scene = load_scene(root, DataConfig(downscale=2), undistort=True)
    train = scene.splits["train"]
    assert train.names[0] == "image001.png"
    np.testing.assert_array_equal(train.image(0).numpy(), reduced(known.image(1), 2))
    torch.testing.assert_close(train.cameras.Ks[0, 0, 0], torch.tensor(FOCAL / 2))
    refuse(root, "there is images_2: pass --downscale 2")


def test_images_already_reduced_under_the_usual_name_are_said(root, known):
    """images/ that holds the copies: the focal length is scaled, with a warning."""
    for i in range(COUNT):
        write_png(root / "images" / f"{i:03d}.png", reduced(known.image(i), 2))
    scene = load_scene(root, undistort=True)
    torch.testing.assert_close(scene.splits["train"].cameras.Ks[0, 0, 0], torch.tensor(FOCAL / 2))
    assert any(n.startswith("Warning") and "intrinsics were scaled" in n for n in scene.notices)


def test_a_colmap_model_goes_first(root, known):
    write_colmap(root, known)
    format, reason, rejected = detect_format(root)
    assert format == "colmap"
    assert "would also do as llff" in reason
    assert "--format llff reads it" in rejected["llff"]
    assert load_scene(root, DataConfig(format="llff"), undistort=True).points is None


def test_the_file_names_the_scene(root):
    assert load_scene(root / "poses_bounds.npy", undistort=True).root == root.resolve()


def test_a_pose_that_is_not_finite_is_left_out(root, known):
    rows = llff_rows(known)
    rows[3, 0] = np.nan
    np.save(root / "poses_bounds.npy", rows)
    scene = load_scene(root, undistort=True)
    assert "003.png" not in scene.splits["train"].names
    assert any("1 of 12 poses are unusable: '003.png'" in notice for notice in scene.notices)


def change(rows=slice(None), columns=slice(None), value=np.nan):
    def spoil(root):
        array = np.load(root / "poses_bounds.npy")
        array[rows, columns] = value
        np.save(root / "poses_bounds.npy", array)

    return spoil


def replace(make):
    return lambda root: np.save(root / "poses_bounds.npy", make(np.load(root / "poses_bounds.npy")))


def claim_many_rows(root):
    """A header for 1e11 rows."""
    content = (root / "poses_bounds.npy").read_bytes()
    (root / "poses_bounds.npy").write_bytes(content.replace(b"(12, 17), }           ", b"(100000000000, 17), } "))


LEAVES = "leaves the scene folder"
CASES = {
    "cut": (lambda root: os.truncate(root / "poses_bounds.npy", 700), "poses_bounds.npy"),
    "empty": (lambda root: os.truncate(root / "poses_bounds.npy", 0), "poses_bounds.npy"),
    "objects": (
        lambda root: np.save(root / "poses_bounds.npy", np.full((12, 17), None), allow_pickle=True),
        "expected float32 or float64",
    ),
    "claims many rows": (claim_many_rows, "claims 100000000000x17 numbers"),
    "16 columns": (replace(lambda rows: rows[:, :16]), "12x16, expected Nx17"),
    "one dimension": (replace(np.ravel), "204, expected Nx17"),
    "three dimensions": (replace(lambda rows: rows[None]), "1x12x17, expected Nx17"),
    "no row": (replace(lambda rows: rows[:0]), "0x17, expected Nx17"),
    "too many rows": (
        replace(lambda rows: np.zeros((100_001, 17))),
        "100001x17, expected Nx17 with N from 1 to 100000",
    ),
    "an image too few": (lambda root: (root / "images" / "000.png").unlink(), "restore the images that are lacking"),
    "images of no reduction": (
        lambda root: (root / "images").rename(root / "images_1"),
        "neither images/ nor images_N/",
    ),
    "images of an odd reduction": (
        lambda root: (root / "images").rename(root / "images_04"),
        "neither images/ nor images_N/",
    ),
    "a line break in a name": (
        lambda root: (root / "images" / "004.png").rename(root / "images" / "004\r.png"),
        "rename it",
    ),
    "a row too few": (replace(lambda rows: rows[:-1]), "11 rows for 12 images in images/"),
    "an image too many": (
        lambda root: shutil.copy(root / "images" / "000.png", root / "images" / "extra.png"),
        "12 rows for 13 images in images/; rows go by the sorted names, so there must be one for each: remove images",
    ),
    "two poses not finite": (change(slice(2, 4), 0), "2 of 12 poses are unusable: '002.png', '003.png'"),
    "poses infinite": (change(columns=3, value=np.inf), "holds NaN or Inf"),
    "poses scaled": (change(columns=[0, 1, 2, 5, 6, 7, 10, 11, 12], value=2.0), "poses are unusable"),
    "poses mirrored": (replace(lambda rows: rows * np.array([-1, 1, 1, 1, 1] * 3 + [1, 1])), "is left-handed"),
    "poses zero": (change(columns=[0, 1, 2, 5, 6, 7, 10, 11, 12], value=0.0), "no rotation"),
    "height is a fraction": (change(5, 4, 47.5), "row 5: the height is 47.5"),
    "height is not a number": (change(5, 4), "row 5: the height is nan"),
    "width is zero": (change(0, 9, 0.0), "row 0: the width is 0"),
    "width is huge": (change(0, 9, 1e12), "row 0: the width is 1e+12"),
    "width is wrong": (change(columns=9, value=70.0), "but the intrinsics in"),
    "size is swapped": (change(columns=[4, 9], value=np.array([WIDTH, HEIGHT])), "is it rotated?"),
    "focal is zero": (change(7, 14, 0.0), "row 7: the focal length is 0"),
    "focal is negative": (change(7, 14, -60.0), "row 7: the focal length is -60"),
    "focal is infinite": (change(7, 14, np.inf), "row 7: the focal length is inf"),
    "near is not a number": (change(4, 15), "row 4 has the depths nan and 5.04"),
    "near is negative": (change(4, 15, -1.0), "row 4 has the depths -1 and 5.04"),
    "near behind far": (change(4, 15, 6.0), "row 4 has the depths 6 and 5.04"),
    "far is infinite": (change(4, 16, np.inf), "row 4 has the depths 1.04 and inf"),
    "file leaves the scene": (link_out("poses_bounds.npy"), LEAVES),
    "images leave the scene": (link_out("images"), LEAVES),
    "an image leaves the scene": (link_out("images/004.png"), LEAVES),
    "no images": (lambda root: shutil.rmtree(root / "images"), "neither images/ nor images_N/"),
    "most images are folders": (
        lambda root: [image.unlink() or image.mkdir() for image in sorted((root / "images").iterdir())[:7]],
        "7 of 12 images have no file",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_scenes(root, case):
    spoil, needle = CASES[case]
    spoil(root)
    refuse(root, needle)


def test_a_link_that_leaves_the_scene_is_followed_when_it_may_be(root):
    link_out("images")(root)
    scene = load_scene(root, DataConfig(allow_external_paths=True), undistort=True)
    assert sum(map(len, scene.splits.values())) == COUNT


def test_the_capture_is_known_again_and_a_change_noticed(root, known):
    first = load_scene(root, undistort=True).stated
    assert load_scene(root, undistort=True).stated == first
    change(2, 16, 5.5)(root)
    assert load_scene(root, undistort=True).stated != first  # the depth range is part of it
