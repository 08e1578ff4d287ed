"""Real scenes: the numbers their files promise, and reconstructed points where the photographs show them."""

import struct

import pytest
import torch

from nfc_splat.data import DataConfig, load_scene


def test_lego(data_root):
    scene = load_scene(data_root / "lego_400", DataConfig(downscale=2), undistort=True)
    assert {name: len(split) for name, split in scene.splits.items()} == {"train": 100, "test": 25}
    train = scene.splits["train"]
    assert train.names[0] == "train/r_0.png"
    assert (train.cameras.width, train.cameras.height) == (200, 200)
    torch.testing.assert_close(
        train.cameras.Ks[0, 0, 0], torch.tensor(0.5 * 200 / torch.tan(torch.tensor(0.6911112 / 2)).item())
    )
    torch.testing.assert_close(train.cameras.centers.norm(dim=1), torch.full((100,), 4.031128), atol=1e-3, rtol=0)
    pixels, depths = train.cameras.project(torch.zeros(1, 3))
    assert (pixels - 100).abs().max() < 0.01  # every camera looks at the origin
    assert (depths > 4).all()
    target = train.target(0, scene.background)
    assert target[0, 0].tolist() == [1, 1, 1]
    assert scene.has_alpha
    assert target[100, 100].max() < 0.9


def test_hook_has_times(data_root):
    scene = load_scene(data_root / "dnerf_hook_400", DataConfig(downscale=4), undistort=True)
    times = scene.splits["train"].cameras.times
    torch.testing.assert_close(times, torch.arange(100) / 99, atol=1e-5, rtol=0)
    test = scene.splits["test"].cameras.times
    assert len(test) == 20
    assert test.min() == 0
    assert test.max() == 1


def test_fox_lists_files_that_do_not_exist(data_root):
    scene = load_scene(data_root / "fox_540", DataConfig(downscale=4), undistort=True)
    assert {name: len(split) for name, split in scene.splits.items()} == {"train": 43, "test": 7}
    (notice,) = [notice for notice in scene.notices if "have no file" in notice]
    assert notice.startswith("Warning: 17 of 67 images have no file: 'images/0005.jpg'")
    assert scene.undistorted
    exact = load_scene(data_root / "fox_540", DataConfig(downscale=4), undistort=False)
    cameras = exact.splits["train"].cameras
    assert cameras.model == "opencv"
    torch.testing.assert_close(cameras.Ks[0, 0, 0], torch.tensor(687.76 / 4))
    torch.testing.assert_close(
        cameras.distortion[0], torch.tensor([0.0578421, -0.0805099, 0, -0.000980296, 0.00015575, 0])
    )


def observations(path, wanted: str) -> list[tuple[float, float, int]]:
    """The 2D points (x, y, point id) of one image of an images.bin, by a walk of its own."""
    content = path.read_bytes()
    (count,) = struct.unpack_from("<Q", content)
    at = 8
    for _ in range(count):
        at += 64
        end = content.index(b"\0", at)
        name, at = content[at:end].decode(), end + 1
        (number,) = struct.unpack_from("<Q", content, at)
        if name == wanted:
            return list(struct.iter_unpack("<ddq", content[at + 8 : at + 8 + 24 * number]))
        at += 8 + 24 * number
    raise AssertionError(wanted)


def point_ids(path) -> list[int]:
    content, ids = path.read_bytes(), []
    at = 8
    for _ in range(struct.unpack_from("<Q", content)[0]):
        ids.append(struct.unpack_from("<Q", content, at)[0])
        at += 51 + 8 * struct.unpack_from("<Q", content, at + 43)[0]
    return ids


def test_cup_points_project_onto_their_observations(data_root):
    """COLMAP's own matches: points land within about a pixel of where the photographs show them."""
    folder = data_root / "colmap_cup"
    scene = load_scene(folder, undistort=False)
    row = {identifier: i for i, identifier in enumerate(point_ids(folder / "sparse/0/points3D.bin"))}
    train = scene.splits["train"]
    assert len(row) == len(scene.points) == 9262
    for i in (0, 20, 60):
        seen = [(x, y, row[p]) for x, y, p in observations(folder / "sparse/0/images.bin", train.names[i]) if p >= 0]
        pixels, depths = train.cameras[i].project(scene.points[[p for *_, p in seen]])
        error = (pixels[0] - torch.tensor([[x, y] for x, y, _ in seen])).norm(dim=1)
        assert len(seen) > 200
        assert (depths > 0).all()
        assert error.median() < 0.8
        # A shift by half a pixel, the usual slip, would show.
        mean = (pixels[0] - torch.tensor([[x, y] for x, y, _ in seen])).mean(0)
        assert mean.abs().max() < 0.2


def test_cup_points_lie_inside_most_images(data_root):
    scene = load_scene(data_root / "colmap_cup", DataConfig(downscale=4), undistort=True)
    for split in scene.splits.values():
        pixels, depths = split.cameras.project(scene.points)
        width, height = split.cameras.width, split.cameras.height
        inside = (depths > 0) & (pixels >= 0).all(-1) & (pixels[..., 0] < width) & (pixels[..., 1] < height)
        assert inside.float().mean() > 0.5
    assert any("77 of 77" in notice for notice in scene.notices)


@pytest.mark.parametrize("path", ["replica_room0", "replica_room0/room0"])
def test_room0(data_root, path):
    scene = load_scene(data_root / path, DataConfig(downscale=2), undistort=True)
    assert scene.format == "replica"
    assert scene.name == "room0"
    assert {name: len(split) for name, split in scene.splits.items()} == {"train": 4, "test": 1}
    torch.testing.assert_close(scene.splits["train"].cameras.Ks[0, :2, 2], torch.tensor([300.0, 170.0]))
    assert 30_000 < len(scene.points) <= 50_000


def test_room0_points_have_the_colours_that_the_held_out_view_sees(data_root):
    """Points from the training views, seen by the test view: colours agree where nothing hides them."""
    scene = load_scene(data_root / "replica_room0", undistort=True)
    test = scene.splits["test"]
    pixels, depths = test.cameras.project(scene.points)
    inside = (depths[0] > 0) & (pixels[0] >= 0).all(-1) & (pixels[0] < torch.tensor([1200, 680])).all(-1)
    assert inside.float().mean() > 0.8
    columns, rows = pixels[0][inside].floor().long().unbind(-1)
    seen = test.target(0, scene.background)[rows, columns]
    assert (seen - scene.colors[inside]).abs().median() < 0.02
    mirrored = test.target(0, scene.background)[679 - rows, columns]
    assert (mirrored - scene.colors[inside]).abs().median() > 0.1  # the comparison can fail
