"""What the user chooses of a scene: fewer training views, and initial points of their own."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from data_scenes import COUNT, Known, write_blender, write_colmap
from eval_toys import write_blender_scene

from nfc_splat.data import DataConfig, load_scene
from nfc_splat.data.splits import fewer_views
from nfc_splat.errors import UserError
from nfc_splat.training.config import config_from_plain, config_hash, default_config, resolve
from nfc_splat.training.load import describe_scene, scene_hash
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
    chosen, rule = fewer_views(range(count), DataConfig(train_views=wanted))
    assert chosen == expected
    assert f"{wanted} are used" in rule


def test_any_number_of_views_can_be_asked_for():
    for count in range(1, 30):
        for wanted in range(1, count + 1):
            chosen, _ = fewer_views(range(count), DataConfig(train_views=wanted))
            assert chosen == sorted(set(chosen))
            assert len(chosen) == wanted


def test_train_views_thin_out_the_training_images_alone(folders):
    everything = load_scene(folders / "blender", undistort=True)
    fewer = load_scene(folders / "blender", DataConfig(train_views=3), undistort=True)
    train, test = everything.splits["train"].names, everything.splits["test"].names
    assert fewer.splits["train"].names == [
        train[i] for i in fewer_views(range(len(train)), DataConfig(train_views=3))[0]
    ]
    assert fewer.splits["test"].names == test
    torch.testing.assert_close(
        fewer.splits["train"].cameras.viewmats[0], everything.splits["train"].cameras.viewmats[1]
    )
    assert any("--train-views" in notice for notice in fewer.notices)
    assert scene_hash(fewer) != scene_hash(everything)
    assert fewer_views([4, 7], DataConfig()) == ([4, 7], None)


def test_shares_are_drawn_at_random_and_lie_within_one_another():
    chosen = {share: fewer_views(range(50), DataConfig(train_share=share))[0] for share in (0.2, 0.4, 0.6, 1.0)}
    assert [len(part) for part in chosen.values()] == [10, 20, 30, 50]
    assert set(chosen[0.2]) < set(chosen[0.4]) < set(chosen[0.6]) < set(chosen[1.0]) == set(range(50))
    assert all(part == sorted(part) for part in chosen.values())
    assert max(b - a for a, b in pairwise(chosen[0.2])) > 5  # not evenly spread
    again = fewer_views(range(50), DataConfig(train_share=0.2))[0]
    other, rule = fewer_views(range(50), DataConfig(train_share=0.2, train_draw=1))
    assert again == chosen[0.2] != other
    assert "Of 50 training images, 10 are used, drawn at random" in rule
    assert len(fewer_views(range(50), DataConfig(train_share=0.001))[0]) == 1


def test_a_run_records_which_images_it_was_given(folders):
    config = DataConfig(train_share=0.5)
    scene = load_scene(folders / "blender", config, undistort=True)
    assert describe_scene(scene, "abc", config)["training_images"] == scene.splits["train"].names
    assert describe_scene(scene, "abc", DataConfig())["training_images"] == "all"


def test_noise_spoils_the_training_images_once_and_no_others(folders):
    clean = load_scene(folders / "blender", undistort=True)
    noisy = load_scene(folders / "blender", DataConfig(train_noise=0.1), undistort=True)
    background = clean.background
    for index in range(len(clean.splits["test"])):
        assert torch.equal(clean.splits["test"].image(index), noisy.splits["test"].image(index))
    errors = []
    for index in range(len(clean.splits["train"])):
        spoiled, truth = noisy.splits["train"].image(index), clean.splits["train"].target(index, background)
        assert (spoiled.dtype, tuple(spoiled.shape)) == (torch.uint8, tuple(truth.shape))
        assert torch.equal(spoiled, noisy.splits["train"].image(index))  # the same at every reading
        inside = (truth > 0.35) & (truth < 0.65)  # nothing is clipped there
        errors.append((spoiled.float() / 255 - truth)[inside])
    errors = torch.cat(errors)
    assert len(errors) > 500
    assert abs(float(errors.mean())) < 0.1 * 4 / len(errors) ** 0.5
    assert float(errors.std()) == pytest.approx(0.1, rel=0.1)
    assert any("--train-noise" in notice for notice in noisy.notices)


def test_noise_covers_what_lies_behind_transparent_images(tmp_path):
    write_blender_scene(tmp_path / "ball", train=3, test=1)
    clean = load_scene(tmp_path / "ball", undistort=True)
    noisy = load_scene(tmp_path / "ball", DataConfig(train_noise=0.2), undistort=True)
    assert (clean.has_alpha, noisy.has_alpha, noisy.cut_out) == (True, False, True)
    seen, spoiled = clean.splits["train"].image(0), noisy.splits["train"].image(0)
    assert (seen.shape[2], spoiled.shape[2]) == (4, 3)
    empty = spoiled[seen[..., 3] == 0].float() / 255  # over white: half of the noise is clipped
    assert float((empty < 1).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(empty.mean()) == pytest.approx(1 - 0.2 / (2 * torch.pi) ** 0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(train_share=0.0), r"--train-share 0\.0: expected more than 0"),
        (dict(train_share=1.5), r"--train-share 1\.5: expected more than 0 and at most 1"),
        (dict(train_share=0.5, train_views=3), "--train-share and --train-views: expected at most one"),
        (dict(train_draw=-1), "--train-draw -1: expected 0 or more"),
        (dict(train_noise=-0.1), r"--train-noise -0\.1: expected 0 or more"),
        (dict(train_noise=float("nan")), "--train-noise nan: expected 0 or more"),
    ],
)
def test_choices_that_make_no_sense_are_refused(folders, options, message):
    with pytest.raises(UserError, match=message):
        load_scene(folders / "blender", DataConfig(**options), undistort=True)


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
