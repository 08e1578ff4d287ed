"""What the user chooses of a scene: fewer training views, and initial points of their own."""

import dataclasses

import numpy as np
import pytest
import torch
from data_scenes import COUNT, Known, write_blender, write_colmap

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.splits import fewer_views
from nfc_splat.errors import UserError
from nfc_splat.training.config import config_from_plain, config_hash, default_config, resolve
from nfc_splat.training.load import scene_hash
from nfc_splat.training.plain import to_plain


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("choice")
    write_blender(root / "blender", Known())
    write_colmap(root / "colmap", Known())
    return root


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(10, 10, list(range(10))), (10, 5, [1, 3, 5, 7, 9]), (10, 1, [5]), (10, 3, [1, 5, 8]), (100, 4, [12, 37, 62, 87])],
)
def test_views_are_spread_evenly(count, wanted, expected):
    chosen, rule = fewer_views(range(count), wanted)
    assert chosen == expected
    assert f"{wanted} are used" in rule


def test_any_number_of_views_can_be_asked_for():
    for count in range(1, 30):
        for wanted in range(1, count + 1):
            chosen, _ = fewer_views(range(count), wanted)
            assert chosen == sorted(set(chosen))
            assert len(chosen) == wanted


def test_train_views_thin_out_the_training_images_alone(folders):
    everything = load_scene(folders / "blender", undistort=True)
    fewer = load_scene(folders / "blender", DataConfig(train_views=3), undistort=True)
    train, test = everything.splits["train"].names, everything.splits["test"].names
    assert fewer.splits["train"].names == [train[i] for i in fewer_views(range(len(train)), 3)[0]]
    assert fewer.splits["test"].names == test
    torch.testing.assert_close(
        fewer.splits["train"].cameras.viewmats[0], everything.splits["train"].cameras.viewmats[1]
    )
    assert any("--train-views" in notice for notice in fewer.notices)
    assert scene_hash(fewer) != scene_hash(everything)
    assert fewer_views([4, 7], None) == ([4, 7], None)


def test_more_views_than_there_are_is_an_error(folders):
    with pytest.raises(UserError, match=rf"--train-views {COUNT}: the scene has 9 training images"):
        load_scene(folders / "blender", DataConfig(train_views=COUNT), undistort=True)
    with pytest.raises(UserError, match="--train-views 0: expected 1 or more"):
        load_scene(folders / "blender", DataConfig(train_views=0), undistort=True)


def test_the_choice_is_part_of_what_a_resumed_run_must_share(folders, tmp_path):
    config = default_config(folders / "blender", method="dvgo", preset="quick", device="cpu")
    chosen = resolve(dataclasses.replace(config, data=DataConfig(train_views=3)))
    assert config_from_plain(to_plain(chosen), "test").data.train_views == 3
    assert config_hash(chosen) != config_hash(resolve(config))
    points = DataConfig(points=tmp_path / "points.txt")
    assert config_hash(resolve(dataclasses.replace(config, data=points))) == config_hash(resolve(config))
    assert config_from_plain(to_plain(dataclasses.replace(config, data=points)), "test").data == points


@pytest.mark.parametrize("separator", [" ", ";", ",", "; "])
def test_points_of_a_text_file_replace_the_scenes(folders, tmp_path, separator):
    points = np.array([[0.5, -1.0, 2.0], [1e-3, 4.0, 5.25]], np.float32)
    rows = [separator.join(f"{value:g}" for value in (*point, 255, 0, 7)) for point in points]
    path = tmp_path / "points.txt"
    path.write_text("\n".join(["# x y z r g b", *rows, "", separator.join(("nan", "1", "2"))]))
    scene = load_scene(folders / "colmap", DataConfig(points=path), undistort=True)
    np.testing.assert_array_equal(scene.points.numpy(), points)
    assert scene.colors is None
    assert any("points.txt has 2 initial points" in notice for notice in scene.notices)
    assert scene_hash(scene) != scene_hash(load_scene(folders / "colmap", undistort=True))


def test_points_of_a_ply_file_bring_their_colours(folders, tmp_path):
    path = tmp_path / "points.ply"
    head = ["ply", "format ascii 1.0", "element vertex 1", *(f"property float {axis}" for axis in "xyz")]
    head += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    path.write_text("\n".join([*head, "end_header", "1 2 3 255 0 51"]) + "\n")
    scene = load_scene(folders / "blender", DataConfig(points=path), undistort=True)
    assert scene.points.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(scene.colors.numpy(), [[1, 0, 0.2]], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2\n", r"line 1: '1 2', expected x, y, z"), ("\n1 2 b\n", "line 2"), ("# none\n", "holds no finite point")],
)
def test_points_that_are_none_are_refused(folders, tmp_path, text, message):
    path = tmp_path / "points.xyz"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_scene(folders / "blender", DataConfig(points=path), undistort=True)
    with pytest.raises(UserError, match=r"--points .*absent.txt: cannot be read"):
        load_scene(folders / "blender", DataConfig(points=tmp_path / "absent.txt"), undistort=True)
