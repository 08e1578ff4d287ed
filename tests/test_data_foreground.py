"""Masks of the object: which image each belongs to, what they change, and masks that are none."""

import json
import shutil

import numpy as np
import pytest
import torch
from data_scenes import (
    COUNT,
    HEIGHT,
    WIDTH,
    assert_refused,
    sdfstudio_content,
    write_dtu,
    write_png,
    write_sdfstudio,
)

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.suspects import scene_findings
from nfc_splat.errors import UserError


@pytest.fixture
def root(known, tmp_path):
    write_dtu(tmp_path / "scene", known)
    return tmp_path / "scene"


def load(root, **options):
    return load_scene(root, DataConfig(format="dtu", **options), undistort=True)


def refuse(root, needle, **options):
    assert_refused(root, needle, format="dtu", **options)


def test_masks_show_the_object_and_every_pixel_counts(root):
    scene = load(root)
    train = scene.splits["train"]
    expected = torch.zeros(HEIGHT, WIDTH)
    expected[:, : WIDTH // 2] = 1
    for i in range(len(train)):
        assert torch.equal(train.foreground(i), expected)
        assert train.mask(i) is None
    assert any("every pixel is measured all the same" in notice for notice in scene.notices)
    found = {finding.subject: finding.text for finding in scene_findings(scene, None)["Images"]}
    assert found["foreground"] == "12 images with a mask, 50 % of the pixels of the object"
    assert "masks" not in found


def test_the_background_is_ignored_when_that_is_asked_for(root):
    scene = load(root, ignore_background=True)
    train = scene.splits["train"]
    assert torch.equal(train.mask(0), train.foreground(0))
    assert any("outside the foreground masks is ignored" in notice for notice in scene.notices)
    assert scene.stated == load(root).stated
    shutil.rmtree(root / "mask")
    assert load(root).splits["train"].foreground(0) is None
    assert load(root).stated != scene.stated
    refuse(root, "--ignore-background needs a foreground mask for every image", ignore_background=True)


def test_masks_are_reduced_with_the_images(root):
    train = load(root, downscale=2).splits["train"]
    assert train.foreground(0).shape == (HEIGHT // 2, WIDTH // 2)
    assert train.foreground(0).mean() == 0.5


def numbered_mask(number: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[: number + 1] = 255
    return mask


def rows_of_masks(scene) -> dict[int, int]:
    """How many rows each image's mask has, by the image's number."""
    return {
        int("".join(filter(str.isdigit, name))): int(split.foreground(i)[:, 0].sum())
        for split in scene.splits.values()
        for i, name in enumerate(split.names)
        if split.foreground(i) is not None
    }


@pytest.mark.parametrize("name", ["{:03d}.png", "{:06d}.png", "{}.png", "mask_of_{:02d}.png"])
def test_masks_are_paired_by_name_by_number_or_by_order(root, name):
    shutil.rmtree(root / "mask")
    for i in range(COUNT):
        write_png(root / "mask" / name.format(i), numbered_mask(i))
    assert rows_of_masks(load(root)) == {i: i + 1 for i in range(COUNT)}


def test_a_missing_mask_is_said_and_shifts_no_other(root):
    for i in range(COUNT):
        write_png(root / "mask" / f"{i:03d}.png", numbered_mask(i))
    (root / "mask" / "004.png").unlink()
    scene = load(root)
    assert rows_of_masks(scene) == {i: i + 1 for i in range(COUNT) if i != 4}
    assert "Warning: there is no foreground mask for 'image/000004.png'." in scene.notices
    refuse(root, "there is none for 'image/000004.png'", ignore_background=True)


def test_masks_that_belong_to_no_image_are_said(root):
    shutil.rmtree(root / "mask")
    write_png(root / "mask" / "somewhere.png", numbered_mask(3))
    scene = load(root)
    assert rows_of_masks(scene) == {}
    assert any(n.startswith("Warning") and "'somewhere.png'" in n for n in scene.notices)


def test_sdfstudio_masks_show_the_object_too(tmp_path, known):
    write_sdfstudio(tmp_path, known)
    content = sdfstudio_content(known)
    for i, frame in enumerate(content["frames"]):
        frame["foreground_mask"] = f"{i:06d}_foreground_mask.png"
        write_png(tmp_path / frame["foreground_mask"], numbered_mask(i))
    (tmp_path / "meta_data.json").write_text(json.dumps(content))
    scene = load_scene(tmp_path, undistort=True)
    assert scene.splits["train"].mask(0) is None
    assert scene.splits["train"].foreground(0)[:, 0].sum() == 2
    content["frames"][3]["foreground_mask"] = "../outside.png"
    (tmp_path / "meta_data.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="leaves the scene folder"):
        load_scene(tmp_path, undistort=True)


def write_numbered(root, name, numbers=range(COUNT)) -> None:
    """Masks called by `numbers`, each with as many rows as its place, from 1."""
    shutil.rmtree(root / "mask")
    for place, number in enumerate(numbers):
        write_png(root / "mask" / name.format(number), numbered_mask(place))


def test_masks_that_count_from_one_go_by_their_order(root):
    """As in NeuS, which sorts both; by number all but the first image would have another's mask."""
    write_numbered(root, "{:03d}.png", range(1, COUNT + 1))
    scene = load(root)
    assert rows_of_masks(scene) == {i: i + 1 for i in range(COUNT)}
    assert "The masks go by their order: '001.png' is that of '000000.png'." in scene.notices


def test_a_mask_lacking_and_one_too_many_shift_no_other(root):
    write_numbered(root, "{:03d}.png")
    (root / "mask" / "004.png").rename(root / "mask" / "099.png")
    scene = load(root)
    assert rows_of_masks(scene) == {i: i + 1 for i in range(COUNT) if i != 4}
    assert "Warning: there is no foreground mask for 'image/000004.png'." in scene.notices
    assert "Warning: the names in mask/ are those of no image: '099.png'." in scene.notices


def test_masks_of_zeros_and_ones_are_refused(root):
    """Read as 1 of 255 they would leave out nearly everything, without a word."""
    write_png(root / "mask" / "003.png", np.ones((HEIGHT, WIDTH), np.uint8))
    refuse(root, "003.png: the mask's brightest pixel is 1 of 255")


def test_a_black_mask_is_said(root):
    write_png(root / "mask" / "003.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    assert any("keep no pixel at all: 'image/000003.png'" in notice for notice in load(root).notices)


@pytest.mark.parametrize("kind", ["grey", "colour", "16 bits", "alpha", "grey and alpha"])
def test_white_and_opaque_is_the_object_in_every_kind_of_picture(root, kind):
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[: HEIGHT // 3] = 255
    full = np.full_like(white, 255)
    pictures = {
        "grey": white,
        "colour": np.stack([white] * 3, 2),
        "16 bits": white.astype(np.uint16) * 257,
        "alpha": np.stack([full, full, full, white], 2),
        "grey and alpha": np.stack([white, full], 2),
    }
    for path in (root / "mask").iterdir():
        write_png(path, pictures[kind])
    assert load(root).splits["train"].foreground(0).mean() == pytest.approx(1 / 3)


def test_formats_without_masks_refuse_to_ignore_the_background(tmp_path, known):
    write_sdfstudio(tmp_path, known)
    with pytest.raises(UserError, match="add them, or leave the flag out"):
        load_scene(tmp_path, DataConfig(ignore_background=True), undistort=True)
