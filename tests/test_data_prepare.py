"""From files to views: missing images, bad poses, sizes, ready-made reductions, masks, splits, times, backgrounds."""

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
    WIDTH,
    nerfstudio_content,
    write_blender,
    write_colmap,
    write_nerfstudio,
    write_png,
)

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.errors import UserError


@pytest.fixture
def root(known, tmp_path):
    """A nerfstudio scene to spoil."""
    write_nerfstudio(tmp_path / "scene", known)
    return tmp_path / "scene"


def load(root, undistort=True, **options):
    return load_scene(root, DataConfig(**options), undistort=undistort)


def rewrite(root, known, **extra):
    (root / "transforms.json").write_text(json.dumps(nerfstudio_content(known, **extra)))


def edit_frames(root, change):
    content = json.loads((root / "transforms.json").read_text())
    for frame in content["frames"]:
        change(frame)
    # Python would write `Infinity`, which is refused as JSON; a number too large to hold is what other writers leave.
    (root / "transforms.json").write_text(json.dumps(content).replace("Infinity", "1e999"))


def views(scene):
    return sum(len(split) for split in scene.splits.values())


def test_up_to_half_may_be_missing_and_five_are_named(root):
    for i in range(6):
        (root / "images" / f"{i:03d}.png").unlink()
    scene = load(root)
    assert views(scene) == 6
    (notice,) = [n for n in scene.notices if "have no file" in n]
    assert notice.startswith("Warning: 6 of 12 images have no file: 'images/005.png', 'images/004.png', ")
    assert notice.count("images/") == 5
    (root / "images" / "006.png").unlink()
    with pytest.raises(UserError, match=r"transforms\.json: 7 of 12 images have no file.*--allow-missing"):
        load(root)
    assert views(load(root, allow_missing=True)) == 5


def test_one_bad_pose_is_left_out_but_not_two_in_twelve(root):
    def spoil(names):
        def change(frame):
            if frame["file_path"] in names:
                frame["transform_matrix"][0][0] = 1e999

        return change

    edit_frames(root, spoil(["images/004.png"]))
    scene = load(root)
    assert views(scene) == 11
    assert any("1 of 12 poses are unusable: 'images/004.png'; the first holds NaN or Inf" in n for n in scene.notices)
    edit_frames(root, spoil(["images/007.png"]))
    with pytest.raises(UserError, match=r"2 of 12 poses are unusable: 'images/007\.png', 'images/004\.png'"):
        load(root)


def test_rotations_written_with_few_digits_become_exact(root):
    def round_off(frame):
        frame["transform_matrix"] = np.round(frame["transform_matrix"], 3).tolist()

    edit_frames(root, round_off)
    rotations = load(root).splits["train"].cameras.viewmats[:, :3, :3].double()
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(3).double().expand(len(rotations), 3, 3), atol=1e-6, rtol=0
    )


def test_intrinsics_for_a_whole_multiple_are_scaled_and_said(root, known):
    rewrite(root, known, w=4 * WIDTH, h=4 * HEIGHT, fl_x=4 * FOCAL, fl_y=4 * FOCAL, cx=2 * WIDTH, cy=2 * HEIGHT)
    scene = load(root)
    K = scene.splits["train"].cameras.Ks[0]
    torch.testing.assert_close(K, torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]))
    assert any("64x48 images with intrinsics for 256x192" in notice for notice in scene.notices)
    rewrite(root, known, w=WIDTH // 2, h=HEIGHT // 2, fl_x=FOCAL / 2, fl_y=FOCAL / 2, cx=WIDTH / 4, cy=HEIGHT / 4)
    torch.testing.assert_close(load(root).splits["train"].cameras.Ks[0], K)


def test_angles_stand_in_for_focal_lengths(root, known):
    angle = 2 * np.arctan(0.5 * WIDTH / FOCAL)
    silent = {"fl_x": None, "fl_y": None, "cx": None, "cy": None, "w": None, "h": None}
    rewrite(root, known, camera_angle_x=angle, **silent)
    expected = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    torch.testing.assert_close(load(root).splits["train"].cameras.Ks[0], expected)
    rewrite(root, known, camera_angle_x=angle, camera_angle_y=2 * np.arctan(0.5 * HEIGHT / 50), **silent)
    torch.testing.assert_close(load(root).splits["train"].cameras.Ks[0, 1, 1], torch.tensor(50.0))


def test_a_frame_may_have_its_own_intrinsics_and_size(root, known):
    write_png(root / "images" / "005.png", np.zeros((30, 40, 3), np.uint8))

    def change(frame):
        if frame["file_path"] == "images/005.png":
            frame.update(w=40, h=30, fl_x=33.0, fl_y=34.0, cx=19.0, cy=16.0)

    edit_frames(root, change)
    train = load(root).splits["train"]
    at = train.names.index("images/005.png")
    assert train.cameras.sizes[at].tolist() == [40, 30]
    assert train.cameras.Ks[at].tolist() == [[33, 0, 19], [0, 34, 16], [0, 0, 1]]
    assert train.image(at).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="different sizes"):
        _ = train.cameras.width


@pytest.mark.parametrize("format", ["nerfstudio", "colmap"])
def test_ready_made_reductions_are_used(tmp_path, known, format):
    {"nerfstudio": write_nerfstudio, "colmap": write_colmap}[format](tmp_path, known)
    for i in range(COUNT):
        write_png(tmp_path / "images_4" / f"{i:03d}.png", np.full((12, 16, 3), 10 + i, np.uint8))
    scene = load(tmp_path, downscale=4)
    assert scene.resampler == "images_4"
    assert any("images_4" in notice for notice in scene.notices)
    split = scene.splits["train"]
    assert split.image(0).unique().tolist() == [11]
    torch.testing.assert_close(split.cameras.Ks[0, :2, 2], torch.tensor([8.0, 6.0]))
    torch.testing.assert_close(split.cameras.Ks[0, 0, 0], torch.tensor(FOCAL / 4))
    assert load(tmp_path, downscale=2).resampler == "area"
    shutil.rmtree(tmp_path / "images")
    assert load(tmp_path, downscale=4).resampler == "images_4"
    with pytest.raises(UserError, match="there is images_4: pass --downscale 4"):
        load(tmp_path)


def test_reductions_that_lack_images_are_not_used(root):
    for i in range(1, COUNT):
        write_png(root / "images_2" / f"{i:03d}.png", np.zeros((24, 32, 3), np.uint8))
    scene = load(root, downscale=2)
    assert scene.resampler == "area"
    assert any("lacks 'images/000.png'" in notice for notice in scene.notices)


def test_reductions_of_another_size_are_refused(root):
    for i in range(COUNT):
        write_png(root / "images_2" / f"{i:03d}.png", np.zeros((20, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"images_2/011\.png: 32x20, but the intrinsics .* are for 64x48 / 2"):
        load(root, downscale=2)


def test_masks_follow_their_images(root, known):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :32] = 255
    for i in range(COUNT):
        write_png(root / "masks" / f"{i:03d}.png", mask)
    edit_frames(root, lambda frame: frame.update(mask_path=frame["file_path"].replace("images", "masks")))
    split = load(root).splits["train"]
    assert split.mask(3).dtype == torch.float32
    assert split.mask(3).tolist() == (mask / 255).tolist()
    for i in range(COUNT):
        write_png(root / "images_4" / f"{i:03d}.png", known.image(i)[::4, ::4])
    assert load(root, downscale=4).splits["train"].mask(0)[0].tolist() == [1.0] * 8 + [0.0] * 8
    (root / "masks" / "003.png").unlink()
    with pytest.raises(UserError, match=r"masks are listed for 'images/003\.png' but have no file"):
        load(root)


def test_masks_lose_the_lens_with_their_images(root, known):
    for i in range(COUNT):
        write_png(root / "masks" / f"{i:03d}.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    rewrite(root, known, k1=0.2)
    edit_frames(root, lambda frame: frame.update(mask_path=frame["file_path"].replace("images", "masks")))
    scene = load(root)
    assert scene.undistorted
    assert any("undistorted" in notice for notice in scene.notices)
    assert scene.splits["train"].mask(0).min() == 1
    assert not load(root, undistort=False).undistorted


def test_given_lists_make_the_splits(root, known):
    names = [f"images/{i:03d}.png" for i in range(COUNT)]
    rewrite(root, known, train_filenames=names[:6], val_filenames=names[6:8], test_filenames=["./" + names[9]])
    scene = load(root)
    assert {name: len(split) for name, split in scene.splits.items()} == {"train": 6, "val": 2, "test": 1}
    assert scene.splits["test"].names == [names[9]]
    assert any("in no split list" in notice and "'images/008.png'" in notice for notice in scene.notices)
    rewrite(root, known, train_filenames=names[:6], val_filenames=[*names[6:8], "images/none.png"])
    scene = load(root)
    assert scene.splits["test"].names == [names[7], names[6]]  # as the frames are listed
    assert any("val_filenames are the test images" in notice for notice in scene.notices)
    assert any("'images/none.png'" in notice for notice in scene.notices)


def test_blender_without_a_test_file_holds_out_of_training_and_leaves_val_alone(tmp_path, known):
    write_blender(tmp_path, known, test_every=4)
    (tmp_path / "transforms_test.json").rename(tmp_path / "transforms_val.json")
    scene = load(tmp_path)
    assert {name: len(split) for name, split in scene.splits.items()} == {"train": 7, "test": 2}
    assert all(name.startswith("train/") for split in scene.splits.values() for name in split.names)


def test_transparency_is_composited_straight(tmp_path, known):
    write_blender(tmp_path, known)
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., :3] = 200, 100, 50
    rgba[0, 0, 3], rgba[0, 1, 3], rgba[0, 2, 3] = 255, 51, 0
    write_png(tmp_path / "train" / "r_01.png", rgba)
    scene = load(tmp_path)
    assert scene.has_alpha
    assert scene.background.tolist() == [1, 1, 1]
    split = scene.splits["train"]
    at = split.names.index("train/r_01.png")
    target = split.target(at, scene.background)
    color = torch.tensor([200, 100, 50]) / 255
    torch.testing.assert_close(target[0, 0], color)
    torch.testing.assert_close(target[0, 1], 0.2 * color + 0.8)
    torch.testing.assert_close(target[0, 2], torch.ones(3))
    torch.testing.assert_close(split.target(at, torch.tensor([0.5, 0.0, 1.0]))[0, 2], torch.tensor([0.5, 0.0, 1.0]))
    assert any("composited over white" in notice for notice in scene.notices)
    assert load(tmp_path, background="black").background.tolist() == [0, 0, 0]


def test_opaque_scenes_have_no_alpha_and_a_black_background(root):
    scene = load(root)
    assert not scene.has_alpha
    assert scene.background.tolist() == [0, 0, 0]
    target = scene.splits["train"].target(0, scene.background)
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, scene.splits["train"].image(0).float() / 255)


@pytest.mark.parametrize(
    ("stored", "expected", "word"),
    [
        (lambda i: i / 11, lambda i: i / 11, None),
        (lambda i: 10.0 + 5 * i, lambda i: i / 11, "mapped to 0 to 1"),
        (lambda i: 0.1 + i / 20, lambda i: i / 11, "Times from 0.1 to 0.65 were mapped to 0 to 1"),
        (lambda i: 0.4, lambda i: 0.4, None),
        (lambda i: 7.0, lambda i: 0.0, "mapped to 0 to 1"),
    ],
)
def test_times_lie_in_the_unit_interval(root, stored, expected, word):
    edit_frames(root, lambda frame: frame.update(time=stored(int(frame["file_path"][7:10]))))
    scene = load(root)
    for split in scene.splits.values():
        numbers = [int(name[7:10]) for name in split.names]
        torch.testing.assert_close(split.cameras.times, torch.tensor([float(expected(i)) for i in numbers]))
    assert (word is None) or any(word in notice for notice in scene.notices)


def test_times_with_gaps_make_a_static_scene_and_name_the_first_gap(root):
    edit_frames(root, lambda frame: frame.update({} if "004" in frame["file_path"] else {"time": 0.5}))
    scene = load(root)
    assert scene.splits["train"].cameras.times is None
    assert any("1 of 12 frames have no `time`, 'images/004.png' first" in notice for notice in scene.notices)


def test_point_clouds_come_with_the_transforms(root, known):
    text = ["ply", "format ascii 1.0", "element vertex 2", *(f"property float {a}" for a in "xyz"), "end_header"]
    (root / "sparse.ply").write_text("\n".join([*text, "1 2 3", "nan 0 0"]) + "\n")
    rewrite(root, known, ply_file_path="sparse.ply")
    scene = load(root)
    assert scene.points.tolist() == [[1, 2, 3]]
    assert scene.colors is None
    assert any("1 point of 'sparse.ply'" in notice for notice in scene.notices)
    rewrite(root, known, ply_file_path="absent.ply")
    assert any("'absent.ply' that transforms.json names does not exist" in notice for notice in load(root).notices)


def test_suspicious_sets_of_views_are_reported(root, known):
    def together(frame):
        for row in range(3):
            frame["transform_matrix"][row][3] = 1.0

    edit_frames(root, together)
    assert any("same place" in notice for notice in load(root).notices)
    edit_frames(root, lambda frame: frame.update(file_path="images/000.png"))
    assert any("listed more than once: 'images/000.png'" in notice for notice in load(root).notices)
    rewrite(root, known, cx=-3.0)
    assert any("principal point lies outside" in notice for notice in load(root).notices)


@pytest.mark.parametrize("count", [1, 2])
def test_very_small_scenes_train_on_what_there_is(root, count):
    content = json.loads((root / "transforms.json").read_text())
    content["frames"] = content["frames"][:count]
    (root / "transforms.json").write_text(json.dumps(content))
    scene = load(root)
    assert len(scene.splits["train"]) == 1
    assert len(scene.splits["test"]) == count - 1
    assert any(f"only {count} view" in notice for notice in scene.notices)


def test_links_out_of_the_scene_are_followed_only_when_asked(root):
    outside = root.parent / "elsewhere"
    shutil.move(root / "images", outside)
    os.symlink(outside, root / "images")
    with pytest.raises(UserError, match="--allow-external-paths"):
        load(root)
    assert views(load(root, allow_external_paths=True)) == COUNT


def test_links_that_bite_their_tail_are_refused(root):
    (root / "images" / "003.png").unlink()
    os.symlink("003.png", root / "images" / "003.png")
    message = ""
    try:
        scene = load(root)
    except UserError as error:
        message = str(error)
    else:
        message = " ".join(scene.notices)
    assert "003.png" in message


@pytest.mark.parametrize(
    "name",
    [
        *("../x.png", "images/../../x.png", "/x.png", "./../x.png", "images/./../.././x.png", "a/b/../../../x.png"),
        *("//x.png", "/../x.png", "images//../../x.png", "..", "../", "../scene2/x.png"),
    ],
)
@pytest.mark.parametrize("key", ["file_path", "mask_path", "ply_file_path"])
def test_paths_that_leave_the_scene_are_never_opened(root, known, name, key):
    if key == "ply_file_path":
        rewrite(root, known, ply_file_path=name)
    else:
        content = json.loads((root / "transforms.json").read_text())
        content["frames"][0][key] = name
        (root / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"transforms\.json.*leaves the scene"):
        load(root)
