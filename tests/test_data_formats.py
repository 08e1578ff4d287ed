"""The same known scene through every reader: points are where the cameras say, and all formats agree."""

import re

import numpy as np
import pytest
import torch
from data_scenes import COUNT, FOCAL, HEIGHT, WIDTH, WRITERS, write_blender, write_colmap, write_nerfstudio

from nfc_splat.cameras import Cameras
from nfc_splat.data import DataConfig, load_scene


@pytest.fixture(scope="module")
def folders(known, tmp_path_factory):
    """The scene in every format, written once."""
    root = tmp_path_factory.mktemp("formats")
    for name, write in WRITERS.items():
        write(root / name, known)
    write_colmap(root / "colmap_text", known, binary=False, where="colmap/sparse/0")
    return root


def digits(name: str) -> int:
    """The camera's number out of an image's name in any of the formats; NSVF's first digit is the split."""
    return int(re.findall(r"[0-9]+", name.rpartition("/")[2])[-1])


@pytest.mark.parametrize("format", [*WRITERS, "colmap_text"])
def test_every_point_has_its_colour_in_the_pixel_where_the_cameras_see_it(folders, known, format):
    scene = load_scene(folders / format, undistort=True)
    assert scene.format == format.removesuffix("_text")
    points = torch.from_numpy(known.points).float()
    checked = 0
    for split in scene.splits.values():
        pixels, depths = split.cameras.project(points)
        for i, name in enumerate(split.names):
            visible = known.visible(digits(name))
            columns, rows = pixels[i].floor().long().unbind(-1)
            assert (depths[i] > 0).all()
            seen = split.image(i)[rows, columns, :3].numpy()
            np.testing.assert_array_equal(seen[visible], known.colors[visible])
            checked += int(visible.sum())
    assert checked > COUNT * 20


def by_number(scene) -> Cameras:
    """All cameras of a scene, sorted by their number."""
    joined = Cameras.concatenate([split.cameras for split in scene.splits.values()])
    names = [name for split in scene.splits.values() for name in split.names]
    assert len(names) == COUNT
    return joined[sorted(range(COUNT), key=lambda i: digits(names[i]))]


@pytest.mark.parametrize("format", [*WRITERS, "colmap_text"])
@pytest.mark.parametrize("undistort", [True, False])
def test_all_formats_give_the_same_cameras(folders, known, format, undistort):
    cameras = by_number(load_scene(folders / format, undistort=undistort))
    expected = torch.from_numpy(np.linalg.inv(known.poses)).float()
    torch.testing.assert_close(cameras.viewmats, expected, rtol=0, atol=1e-6)
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    torch.testing.assert_close(cameras.Ks, K.expand(COUNT, 3, 3), rtol=1e-6, atol=0)
    assert cameras.sizes.tolist() == [[WIDTH, HEIGHT]] * COUNT
    assert cameras.model == "pinhole"
    assert (cameras.times is None) == (format not in ("dynerf", "hypernerf"))


@pytest.mark.parametrize("format", [*WRITERS, "colmap_text"])
def test_default_splits(folders, format):
    scene = load_scene(folders / format, undistort=True)
    found = {name: [digits(image) for image in split.names] for name, split in scene.splits.items()}
    every = {"replica": 10, "sdfstudio": 10}.get(format, 8)
    held_out = {"test": list(range(0, COUNT, every)), "train": [i for i in range(COUNT) if i % every]}
    given = {
        "blender": {"test": [0, 4, 8], "train": [i for i in range(COUNT) if i % 4]},
        "nsvf": {"train": [0, 3, 6, 9], "val": [1, 4, 7, 10], "test": [2, 5, 8, 11]},
        "nerfpp": {"train": [2, 3, 6, 7, 10, 11], "val": [1, 5, 9], "test": [0, 4, 8]},
        "dynerf": {"train": list(range(1, COUNT)), "test": [0]},
        "hypernerf": {"train": list(range(0, COUNT, 2)), "test": list(range(1, COUNT, 2))},
    }
    assert found == given.get(format, held_out)
    assert sum(notice.startswith("Split: ") for notice in scene.notices) == 1
    if format not in given:
        assert any(f"every {every}th image" in notice for notice in scene.notices)


@pytest.mark.parametrize("format", WRITERS)
def test_asking_for_a_spacing_replaces_every_split(folders, format):
    scene = load_scene(folders / format, DataConfig(test_every=3), undistort=True)
    assert len(scene.splits["test"]) == 4
    assert len(scene.splits["train"]) == 8
    assert set(scene.splits["test"].names).isdisjoint(scene.splits["train"].names)
    without = load_scene(folders / format, DataConfig(test_every=0), undistort=True)
    assert len(without.splits["train"]) == COUNT
    assert len(without.splits["test"]) == 0


def test_points_and_their_colours_come_with_colmap_scenes(folders, known):
    for name in ("colmap", "colmap_text"):
        scene = load_scene(folders / name, undistort=True)
        np.testing.assert_allclose(scene.points.numpy(), known.points, rtol=1e-6)
        np.testing.assert_allclose(scene.colors.numpy() * 255, known.colors, atol=1e-4)
    assert load_scene(folders / "nerfstudio", undistort=True).points is None


def test_what_a_reader_shifted_or_learnt_is_kept(folders):
    replica = load_scene(folders / "replica", undistort=True)
    assert replica.principal_point_shift == 0.5
    sdfstudio = load_scene(folders / "sdfstudio", undistort=True)
    assert sdfstudio.principal_point_shift == 0
    assert sdfstudio.near_far == (0.05, 6.0)
    assert sdfstudio.world_to_gt[:3, 3].tolist() == [1.0, -2.0, 0.5]
    assert sdfstudio.world_to_gt.dtype == torch.float64
    assert sdfstudio.bounds.tolist() == [[-1, -1, -1], [1, 1, 1]]
    assert replica.bounds is None


def test_loading_twice_gives_the_same_bits(folders):
    first, second = (load_scene(folders / "colmap", DataConfig(downscale=3), undistort=True) for _ in range(2))
    assert first.notices == second.notices
    for name, split in first.splits.items():
        other = second.splits[name]
        assert split.names == other.names
        assert torch.equal(split.cameras.Ks, other.cameras.Ks)
        assert all(torch.equal(split.image(i), other.image(i)) for i in range(len(split)))


def test_reduced_images_and_cameras_stay_together(folders, known):
    """Every reduced pixel is the mean of its block, and projections shrink by the same factor."""
    scene = load_scene(folders / "nerfstudio", DataConfig(downscale=2), undistort=True)
    split = scene.splits["train"]
    assert scene.resampler == "area"
    assert (split.cameras.width, split.cameras.height) == (WIDTH // 2, HEIGHT // 2)
    full = load_scene(folders / "nerfstudio", undistort=True).splits["train"]
    expected = full.image(0).double().reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
    assert (split.image(0).double() - expected).abs().max() <= 0.5
    points = torch.from_numpy(known.points).float()
    small, large = split.cameras.project(points)[0], full.cameras.project(points)[0]
    torch.testing.assert_close(small * 2, large, rtol=0, atol=1e-4)


def test_time_is_read_where_it_is_given(tmp_path, known):
    write_blender(tmp_path / "timed", known, times=True)
    scene = load_scene(tmp_path / "timed", undistort=True)
    split = scene.splits["train"]
    expected = torch.tensor([digits(name) / (COUNT - 1) for name in split.names])
    torch.testing.assert_close(split.cameras.times, expected)
    torch.testing.assert_close(split.cameras.rays().times[:, 0, 0], expected)


def test_a_file_of_the_scene_names_the_scene(folders):
    assert load_scene(folders / "nerfstudio" / "transforms.json", undistort=True).format == "nerfstudio"


def test_the_distorted_cameras_of_a_field_see_the_same_points(tmp_path, known):
    """Written through a lens: each point's pixel is where the distorted camera projects it."""
    extra = {"camera_model": "OPENCV", "k1": 0.05, "k2": -0.02, "p1": 0.002, "p2": -0.001}
    write_nerfstudio(tmp_path, known, **extra)
    exact = load_scene(tmp_path, undistort=False).splits["train"].cameras
    assert exact.model == "opencv"
    assert exact.distortion[0].tolist() == pytest.approx([0.05, -0.02, 0, 0.002, -0.001, 0])
    x, y = 0.21, -0.13
    r2 = x * x + y * y
    radial = 1 + 0.05 * r2 - 0.02 * r2 * r2
    u = x * radial + 2 * 0.002 * x * y - 0.001 * (r2 + 2 * x * x)
    v = y * radial + 0.002 * (r2 + 2 * y * y) - 2 * 0.001 * x * y
    point = torch.linalg.inv(exact.viewmats[0].double()) @ torch.tensor([2 * x, 2 * y, 2.0, 1.0], dtype=torch.float64)
    pixels, _ = exact[0].to(dtype=torch.float64).project(point[None, :3])
    expected = torch.tensor([FOCAL * u + WIDTH / 2, FOCAL * v + HEIGHT / 2], dtype=torch.float64)
    torch.testing.assert_close(pixels[0, 0], expected, rtol=0, atol=1e-5)
