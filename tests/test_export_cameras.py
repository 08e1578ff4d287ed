"""Cameras for other tools: written, and read back by this project's readers and, as their own tools do, by hand."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_scenes import (
    COUNT,
    HEIGHT,
    WIDTH,
    nerfstudio_content,
    write_colmap,
    write_dynerf,
    write_images,
    write_nerfstudio,
    write_png,
)
from PIL import Image

from nfc_splat import chosen_run
from nfc_splat.data import DataConfig, load_scene
from nfc_splat.errors import UserError
from nfc_splat.export import cameras as door

FOLDERS = ("nerfstudio", "colmap", "colmap-text")
READERS = {"nerfstudio": "nerfstudio", "colmap": "colmap", "colmap-text": "colmap"}


def export(scene, folder, format, monkeypatch, *words):
    """What the command does with a run on `scene`."""
    run = SimpleNamespace(scene=scene)
    monkeypatch.setattr(door, "load_chosen_run", lambda options: (run, "cpu"))
    assert door.main(["RUN", "--format", format, "--out", str(folder), *words]) == 0


def by_name(scene):
    """Every view by its name without folder and ending: split, camera, image, mask."""
    return {
        name.removeprefix("images/").rpartition(".")[0]: (which, split.cameras[i], split.image(i), split.mask(i))
        for which, split in scene.splits.items()
        for i, name in enumerate(split.names)
    }


def assert_same_views(found, expected, *, splits=True):
    assert set(found) == set(expected)
    for name, (split, camera, image, mask) in expected.items():
        other = found[name]
        assert other[0] == split or not splits
        torch.testing.assert_close(other[1].viewmats, camera.viewmats, rtol=0, atol=2e-6)
        torch.testing.assert_close(other[1].Ks, camera.Ks, rtol=1e-6, atol=0)
        assert other[1].sizes.tolist() == camera.sizes.tolist()
        assert torch.equal(other[2], image)
        assert (other[3] is None) == (mask is None)
        if mask is not None:
            assert torch.equal(other[3], mask)


@pytest.mark.parametrize("format", FOLDERS)
def test_round_trip(known, tmp_path, monkeypatch, capsys, format):
    write_colmap(tmp_path / "scene", known)
    for i in range(COUNT):
        write_png(tmp_path / "scene" / "masks" / f"{i:03d}.png", np.full((HEIGHT, WIDTH), 255 * (i % 2), np.uint8))
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "out", format, monkeypatch, "--images")
    assert f"{COUNT} cameras, in the scene's frame" in capsys.readouterr().out
    back = load_scene(tmp_path / "out", DataConfig(format=READERS[format]), undistort=True)
    assert_same_views(by_name(back), by_name(scene))
    order = lambda points: points[points[:, 0].argsort()]  # noqa: E731
    torch.testing.assert_close(order(back.points), order(scene.points))
    torch.testing.assert_close(order(back.colors), order(scene.colors), rtol=0, atol=1 / 255)


LENSES = {
    "opencv": {"camera_model": "OPENCV", "k1": 0.05, "k2": -0.02, "p1": 0.002, "p2": -0.001},
    "full": {"camera_model": "OPENCV", "k1": 0.05, "k2": -0.02, "k3": 0.01, "p1": 0.002, "p2": -0.001},
    "fisheye": {"camera_model": "OPENCV_FISHEYE", "k1": 0.02, "k2": -0.01, "k3": 0.003, "k4": -0.001},
}


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("lens", LENSES)
def test_lenses_survive(known, tmp_path, monkeypatch, format, lens):
    write_nerfstudio(tmp_path / "scene", known, **LENSES[lens])
    scene = load_scene(tmp_path / "scene", undistort=False)
    export(scene, tmp_path / "out", format, monkeypatch, "--images")
    back = load_scene(tmp_path / "out", DataConfig(format=READERS[format]), undistort=False)
    found, expected = back.splits["train"].cameras, scene.splits["train"].cameras
    assert found.model == expected.model
    torch.testing.assert_close(found.distortion[0], expected.distortion[0])


def test_a_lens_that_colmap_lacks_is_refused(known, tmp_path, monkeypatch):
    write_nerfstudio(tmp_path / "scene", known, camera_model="OPENCV", k1=0.01, k4=0.001)
    scene = load_scene(tmp_path / "scene", undistort=False)
    with pytest.raises(UserError, match=r"COLMAP has no lens with k4 0\.001; export it as nerfstudio"):
        export(scene, tmp_path / "out", "colmap", monkeypatch)


def test_splits_times_and_lenses_of_their_own_survive_in_nerfstudio(known, tmp_path, monkeypatch):
    content = nerfstudio_content(known)
    names = [frame["file_path"] for frame in content["frames"]]
    for i, frame in enumerate(content["frames"]):
        frame |= {"time": i / (COUNT - 1), "fl_x": 60.0 + i, "cx": 30.0 + i / 4}
    content |= {"train_filenames": names[3:], "val_filenames": names[:1], "test_filenames": names[1:3]}
    write_images(tmp_path / "scene" / "images", known)
    (tmp_path / "scene" / "transforms.json").write_text(json.dumps(content))
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "out", "nerfstudio", monkeypatch, "--images")
    back = load_scene(tmp_path / "out", undistort=True)
    assert_same_views(by_name(back), by_name(scene))
    for split in ("train", "val", "test"):
        torch.testing.assert_close(back.splits[split].cameras.times, scene.splits[split].cameras.times)
    shared = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert "fl_y" in shared
    assert "fl_x" not in shared


def test_images_as_the_run_saw_them_fit_its_cameras(known, tmp_path, monkeypatch):
    """Without the lens, and reduced."""
    write_nerfstudio(tmp_path / "scene", known, **LENSES["opencv"])
    scene = load_scene(tmp_path / "scene", DataConfig(downscale=2), undistort=True)
    export(scene, tmp_path / "out", "colmap", monkeypatch, "--images")
    back = load_scene(tmp_path / "out", undistort=True)
    assert_same_views(by_name(back), by_name(scene))
    assert not any("scaled to the images" in notice for notice in back.notices)


def test_moving_cameras_in_folders_of_their_own(known, tmp_path, monkeypatch, capsys):
    write_dynerf(tmp_path / "scene", known, frames=2)
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "out", "colmap-text", monkeypatch, "--images")
    assert "COLMAP has no times" in capsys.readouterr().out
    back = load_scene(tmp_path / "out", DataConfig(time_from="names"), undistort=True)
    names = sorted(name for split in back.splits.values() for name in split.names)
    assert names[:3] == ["cam00/0000.png", "cam00/0001.png", "cam01/0000.png"]
    assert set(back.splits["train"].cameras.times.tolist()) == {0.0, 1.0}


def as_nerfstudio_reads(folder, split):
    """The views that nerfstudio's parser finds for a split, by name: camera-to-world in OpenCV axes, (w, h, fl_x, fl_y,
    cx, cy), (k1, k2, k3, k4, p1, p2), mask. Its refusals are assertions here."""
    meta = json.loads((folder / "transforms.json").read_text())
    frames = {frame["file_path"]: frame for frame in meta["frames"]}
    assert sum("mask_path" in frame for frame in frames.values()) in (0, len(frames))
    if any(f"{other}_filenames" in meta for other in ("train", "val", "test")):
        names = meta[f"{split}_filenames"]
        assert set(names) <= set(frames)
    else:
        names = list(frames)
    found = {}
    for name in names:
        frame = frames[name]
        lens = [(meta if key in meta else frame)[key] for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")]
        bent = meta if {"k1", "k2", "k3", "p1", "p2"} & set(meta) else frame
        distortion = [bent.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")]
        pose = np.array(frame["transform_matrix"]) @ np.diag([1.0, -1.0, -1.0, 1.0])
        found[name] = (pose, lens, distortion, frame.get("mask_path"))
    return found


def assert_nerfstudio_reads(folder, split, expected):
    """It finds the cameras of the `Split` expected, in any order."""
    found = as_nerfstudio_reads(folder, split)
    assert set(found) == {f"images/{name.removeprefix('images/')}" for name in expected.names}
    for name, camera in zip(expected.names, (expected.cameras[i] for i in range(len(expected))), strict=True):
        pose, lens, distortion, _ = found[f"images/{name.removeprefix('images/')}"]
        np.testing.assert_allclose(pose, np.linalg.inv(camera.viewmats[0].double().numpy()), atol=1e-6)
        K = camera.Ks[0]
        np.testing.assert_allclose(lens, [*camera.sizes[0], K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
        k1, k2, k3, a, b, c = [0.0] * 6 if camera.distortion is None else camera.distortion[0].tolist()
        bends = [k1, k2, k3, a, 0, 0] if camera.model == "opencv_fisheye" else [k1, k2, k3, c, a, b]
        np.testing.assert_allclose(distortion, bends)


def write_frames(root, known, change, **extra):
    """A nerfstudio scene after `change(i, frame)` of the frame of every image i."""
    content = nerfstudio_content(known, **extra)
    for frame in content["frames"]:
        change(int(frame["file_path"][-7:-4]), frame)
    write_images(root / "images", known)
    (root / "transforms.json").write_text(json.dumps(content))


def test_nerfstudio_finds_the_split_that_it_asks_for(known, tmp_path, monkeypatch):
    """It trains with "train" and "val" and is measured on "test"; without "val" the test images are both."""
    write_colmap(tmp_path / "scene", known)
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "a", "nerfstudio", monkeypatch)
    for asked, given in (("train", "train"), ("val", "test"), ("test", "test")):
        assert_nerfstudio_reads(tmp_path / "a", asked, scene.splits[given])
    train, test = scene.splits["train"], scene.splits["test"]
    scene.splits = {"train": train, "test": type(test)([], test.cameras[[]], test._store, []), "val": test}
    export(scene, tmp_path / "b", "nerfstudio", monkeypatch)
    for asked in ("val", "test"):
        assert_nerfstudio_reads(tmp_path / "b", asked, test)


def test_without_held_out_images_nerfstudio_is_left_to_choose(known, tmp_path, monkeypatch, capsys):
    write_colmap(tmp_path / "scene", known)
    scene = load_scene(tmp_path / "scene", DataConfig(test_every=0), undistort=True)
    export(scene, tmp_path / "out", "nerfstudio", monkeypatch)
    assert "nothing was held out, so no split is listed: nerfstudio" in capsys.readouterr().out
    assert_nerfstudio_reads(tmp_path / "out", "val", scene.splits["train"])


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("key", [None, "k1", "fl_x"])
def test_nerfstudio_finds_every_cameras_lens(known, tmp_path, monkeypatch, lens, key):
    """Of its own or shared; where the file has one coefficient for all, nerfstudio looks for none in its frames."""

    def own(i, frame):
        if key is not None:
            frame[key] = LENSES[lens].get(key, 60.0) * (1 + i / 100)

    write_frames(tmp_path / "scene", known, own, **LENSES[lens])
    scene = load_scene(tmp_path / "scene", undistort=False)
    export(scene, tmp_path / "out", "nerfstudio", monkeypatch)
    for split in ("train", "test"):
        assert_nerfstudio_reads(tmp_path / "out", split, scene.splits[split])


def test_a_camera_that_stands_still_keeps_its_pose_in_every_frame(known, tmp_path, monkeypatch):
    still = nerfstudio_content(known)["frames"][0]["transform_matrix"]
    write_frames(tmp_path / "scene", known, lambda i, frame: frame.update(transform_matrix=still, time=i / COUNT))
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "out", "nerfstudio", monkeypatch)
    assert_nerfstudio_reads(tmp_path / "out", "train", scene.splits["train"])


@pytest.mark.parametrize("format", FOLDERS)
def test_where_some_images_have_masks_the_others_get_white_ones(known, tmp_path, monkeypatch, format):
    """nerfstudio refuses masks for a part of the frames."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 5:] = 255
    for i in range(0, COUNT, 3):
        write_png(tmp_path / "scene" / "masks" / f"{i:03d}.png", mask)
    write_colmap(tmp_path / "scene", known)
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "out", format, monkeypatch, "--images")
    for i in range(COUNT):
        with Image.open(tmp_path / "out" / "masks" / f"{i:03d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), mask if i % 3 == 0 else 255)
    if format == "nerfstudio":
        for split in ("train", "test"):
            views = as_nerfstudio_reads(tmp_path / "out", split)
            assert all(found[-1] == name.replace("images/", "masks/") for name, found in views.items())


def test_without_masks_none_are_written(known, tmp_path, monkeypatch):
    write_nerfstudio(tmp_path / "scene", known)
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "out", "nerfstudio", monkeypatch, "--images")
    assert not (tmp_path / "out" / "masks").exists()
    assert {found[-1] for found in as_nerfstudio_reads(tmp_path / "out", "train").values()} == {None}


# COLMAP's "Output format": model numbers, and what the parameters of each are.
COLMAP_MODELS = {
    1: ("PINHOLE", "fx fy cx cy"),
    4: ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"),
    6: ("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
}


def binary_model(folder):
    """Cameras {id: (model, width, height, parameters)}, images {name: (qvec, tvec, camera)} and points [(xyz, rgb)]."""
    data, place = b"", 0

    def take(layout):
        nonlocal place
        values = struct.unpack_from("<" + layout, data, place)
        place += struct.calcsize("<" + layout)
        return values

    data, cameras = (folder / "cameras.bin").read_bytes(), {}
    for _ in range(take("Q")[0]):
        camera, number, width, height = take("IiQQ")
        model, parameters = COLMAP_MODELS[number]
        cameras[camera] = (model, width, height, take(f"{len(parameters.split())}d"))
    assert place == len(data)
    data, place, images, ids = (folder / "images.bin").read_bytes(), 0, {}, set()
    for _ in range(take("Q")[0]):
        (image,), qvec, tvec, (camera,) = take("I"), take("4d"), take("3d"), take("I")
        end = data.index(b"\0", place)
        name, place = data[place:end].decode(), end + 1
        take("2dq" * take("Q")[0])
        images[name] = (qvec, tvec, camera)
        ids.add(image)
    assert place == len(data)
    assert len(ids) == len(images)
    data, place, points = (folder / "points3D.bin").read_bytes(), 0, []
    for _ in range(take("Q")[0]):
        _, xyz, rgb, _ = take("Q"), take("3d"), take("3B"), take("d")
        take("II" * take("Q")[0])
        points.append((xyz, rgb))
    assert place == len(data)
    return cameras, images, points


def text_model(folder):
    """The same of the text files: `#` begins a comment, an image has two lines, the second of which may be empty."""

    def lines(name):
        return [line.split() for line in (folder / name).read_text().splitlines() if not line.startswith("#")]

    numbers = lambda words: tuple(map(float, words))  # noqa: E731
    cameras = {int(row[0]): (row[1], int(row[2]), int(row[3]), numbers(row[4:])) for row in lines("cameras.txt")}
    listed = lines("images.txt")
    assert not any(listed[1::2])
    images = {row[9]: (numbers(row[1:5]), numbers(row[5:8]), int(row[8])) for row in listed[::2]}
    points = [(numbers(row[1:4]), tuple(map(int, row[4:7]))) for row in lines("points3D.txt")]
    return cameras, images, points


def rotation_of(qvec):
    """[3, 3] of a unit quaternion w, x, y, z."""
    assert np.linalg.norm(qvec) == pytest.approx(1, abs=1e-6)
    w, x, y, z = qvec
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


@pytest.mark.parametrize(("format", "read"), [("colmap", binary_model), ("colmap-text", text_model)])
@pytest.mark.parametrize("lens", [None, *LENSES])
def test_colmaps_layout(known, tmp_path, monkeypatch, format, read, lens):
    """World to camera by R(q) X + t, the parameters of the lens in the order of its model, colours in 8 bits."""
    described = {} if lens is None else LENSES[lens]
    write_frames(tmp_path / "scene", known, lambda i, frame: frame.update(fl_x=60.0 + i % 2), **described)
    scene = load_scene(tmp_path / "scene", undistort=False)
    scene.points, scene.colors = torch.from_numpy(known.points).float(), torch.from_numpy(known.colors) / 255
    export(scene, tmp_path / "out", format, monkeypatch)
    cameras, images, points = read(tmp_path / "out" / "sparse" / "0")
    assert set(images) == {f"{i:03d}.png" for i in range(COUNT)}
    assert len(cameras) == 2
    order = dict(COLMAP_MODELS.values())
    for name, (qvec, tvec, camera) in images.items():
        i = int(name[:3])
        world_to_camera = np.linalg.inv(known.poses[i])
        np.testing.assert_allclose(rotation_of(qvec), world_to_camera[:3, :3], atol=2e-6)
        np.testing.assert_allclose(tvec, world_to_camera[:3, 3], atol=2e-6)
        model, width, height, parameters = cameras[camera]
        assert model == {None: "PINHOLE", "opencv": "OPENCV", "full": "FULL_OPENCV", "fisheye": "OPENCV_FISHEYE"}[lens]
        assert (width, height) == (WIDTH, HEIGHT)
        intrinsics = {"fx": 60.0 + i % 2, "fy": 60.0, "cx": WIDTH / 2, "cy": HEIGHT / 2}
        expected = [(intrinsics | described).get(key, 0.0) for key in order[model].split()]
        np.testing.assert_allclose(parameters, expected, rtol=1e-6)
    np.testing.assert_allclose([xyz for xyz, _ in points], known.points, rtol=1e-6)
    assert [list(rgb) for _, rgb in points] == known.colors.tolist()


def test_graphdecos_layout(known, tmp_path, monkeypatch, capsys):
    write_nerfstudio(tmp_path / "scene", known)
    scene = load_scene(tmp_path / "scene", undistort=True)
    export(scene, tmp_path / "cameras.json", "graphdeco", monkeypatch)
    entries = json.loads((tmp_path / "cameras.json").read_text())
    assert [entry["id"] for entry in entries] == list(range(COUNT))
    for entry in entries:
        i = int(entry["img_name"])
        assert (entry["width"], entry["height"], entry["fx"], entry["fy"]) == (WIDTH, HEIGHT, 60, 60)
        local = (known.points - entry["position"]) @ np.array(entry["rotation"])
        pixels = 60 * local[:, :2] / local[:, 2:] + [WIDTH / 2, HEIGHT / 2]
        np.testing.assert_allclose(pixels, known.project(i), atol=1e-3)
    assert "no room" not in capsys.readouterr().out


def test_what_graphdecos_layout_loses_is_said(known, tmp_path, monkeypatch, capsys):
    content = nerfstudio_content(known, cx=30.0, **LENSES["opencv"])
    for i, frame in enumerate(content["frames"]):
        frame["time"] = float(i)
    write_images(tmp_path / "scene" / "images", known)
    (tmp_path / "scene" / "transforms.json").write_text(json.dumps(content))
    scene = load_scene(tmp_path / "scene", undistort=False)
    export(scene, tmp_path / "cameras.json", "graphdeco", monkeypatch)
    lost = "principal points that are not in the middle and the distortion of the lens and times"
    assert f"no room for {lost}" in capsys.readouterr().out


SPLITS = {"usual": {}, "often": {"test_every": 4}, "never": {"test_every": 0}, "own": {}}


@pytest.mark.parametrize("rule", SPLITS)
def test_a_split_that_is_lost_is_said(known, tmp_path, monkeypatch, capsys, rule):
    """That is, where the images that a reader takes for testing are not those of the run."""
    names = [f"images/{i:03d}.png" for i in range(COUNT)]
    lists = {"train_filenames": names[3:], "test_filenames": names[:3]} if rule == "own" else {}
    write_nerfstudio(tmp_path / "scene", known, **lists)
    scene = load_scene(tmp_path / "scene", DataConfig(**SPLITS[rule]), undistort=True)
    for format in ("colmap", "colmap-text"):
        export(scene, tmp_path / format, format, monkeypatch, "--images")
        back = by_name(load_scene(tmp_path / format, undistort=True))
        kept = {name: view[0] for name, view in back.items()} == {
            name: view[0] for name, view in by_name(scene).items()
        }
        said = "COLMAP has no split: its readers test on every 8th image by name" in capsys.readouterr().out
        assert kept == (rule == "usual")
        assert said != kept
    export(scene, tmp_path / "cameras.json", "graphdeco", monkeypatch)
    said = "no room for the split into training and test images" in capsys.readouterr().out
    assert said == (rule != "usual")


def test_names_stay_below_the_folder_and_differ():
    assert door.file_names(["a/b.jpg", "images/c d.PNG", "../../etc/passwd", "/abs/x.png", "//abs/y.png"]) == [
        "a/b.png",
        "c_d.png",
        "etc_passwd.png",
        "abs/x.png",
        "abs/y.png",
    ]
    assert door.file_names(["a.jpg", "A.png", "images"]) == ["00000/a.png", "00001/A.png", "00002/image.png"]


def test_refusals(known, tmp_path, monkeypatch):
    write_nerfstudio(tmp_path / "scene", known)
    scene = load_scene(tmp_path / "scene", undistort=True)
    with pytest.raises(UserError, match=r"--images: cameras\.json refers to no images"):
        export(scene, tmp_path / "cameras.json", "graphdeco", monkeypatch, "--images")
    with pytest.raises(UserError, match=r"expected a name that ends with \.json"):
        export(scene, tmp_path / "cameras.txt", "graphdeco", monkeypatch)
    with pytest.raises(UserError, match="scene is not empty: pass --overwrite"):
        export(scene, tmp_path / "scene", "colmap", monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file, expected a folder"):
        export(scene, tmp_path / "file", "colmap", monkeypatch)


def test_the_default_place_of_a_run(tmp_path, monkeypatch):
    assert chosen_run.run_folder(SimpleNamespace(run=tmp_path / "a.ply")) == tmp_path / "a"
    with pytest.raises(UserError):
        chosen_run.run_folder(SimpleNamespace(run=tmp_path))
